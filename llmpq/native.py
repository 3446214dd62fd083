"""Native code: a C file of the package and its headers, compiled once per machine and version into the user's cache; ctypes."""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from llmpq.cache import cache_folder

COMPILERS = ("cc", "gcc", "clang")


@cache
def load_library(source: Path, flags: tuple[str, ...], *, this_cpu: bool = False) -> ctypes.CDLL | None:
    """The library of a C file; None where no C compiler works. `this_cpu`: compiled for the instructions of this CPU alone."""
    flags = (*flags, "-march=native") if this_cpu else flags
    path = _built(source, flags, _instructions() if this_cpu else "")
    if path is None:
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _built(source: Path, flags: tuple[str, ...], instructions: str) -> Path | None:
    """The shared library in the cache, named after what it was made from; built when it is not there."""
    text = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    digest = hashlib.sha256(text + " ".join(flags).encode() + instructions.encode()).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{digest}.so"
    if target.exists():
        return target
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            command = [compiler, *flags, "-shared", "-fPIC", "-o", str(made), str(source), "-lm"]
            subprocess.run(command, check=True, capture_output=True)
            made.replace(target)
    except (OSError, subprocess.CalledProcessError):
        return None
    return target


def _instructions() -> str:
    """What tells CPUs with other instructions apart: a home directory may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
