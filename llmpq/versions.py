"""Versions of the libraries that a result depends on."""

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("llmpq", "torch", "transformers", "safetensors", "highspy", "z3-solver", "compressed-tensors")


def library_versions() -> dict[str, str]:
    """Name -> version, of Python and of each library that is installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
