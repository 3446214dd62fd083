"""Backends: what executes a compiled program, one file each."""
