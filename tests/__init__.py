"""Tests mirror modules; helpers that several share are modules of this package."""
