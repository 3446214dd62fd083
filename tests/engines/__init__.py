"""Tests that run another engine in an environment of its own (`make engines`)."""
