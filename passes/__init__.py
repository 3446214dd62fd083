"""Passes: each takes a program and returns a new one; one file, one frozen dataclass each."""
