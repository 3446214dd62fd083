"""Export: a compiled model handed to another engine, as a directory with its weights, settings and commands."""
