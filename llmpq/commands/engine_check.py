"""The check of what another engine computes, which `export` and `serve` share: its texts, and the reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmpq.errors import BackendError, InputError

if TYPE_CHECKING:
    from llmpq.backends.vllm_check import VllmCheck
    from llmpq.backends.vllm_server import VllmServer
    from llmpq.export.vllm_settings import VllmSettings

WINDOWS, WINDOW = 4, 256  # stretches of the text, tokens of each at most


def check(server: "VllmServer", settings: "VllmSettings", out: Path, text: str) -> "VllmCheck":
    """Ask the running server and compare. Raises BackendError with the figures when something does not hold."""
    from llmpq.backends.vllm_check import check_server, tolerance_of

    windows = token_windows(out, text, settings.max_model_len - 1)
    reference = reference_log_probs(out, windows)
    tolerance = tolerance_of(reference_log_probs(out, windows, in_bf16=True), reference)
    found = check_server(server, windows, reference, tolerance, settings.kv_blocks)
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


def reference_log_probs(out: Path, windows: Sequence[Sequence[int]], in_bf16: bool = False) -> list[list[float]]:
    """Of every token but the first of each window, by the model in `out` with dequantized weights, in fp32 or in bf16."""
    import torch

    from llmpq.checkpoint.reference import reference_model
    from llmpq.quantization.original import log_probs_of

    log_probs = log_probs_of(reference_model(out, torch.bfloat16 if in_bf16 else torch.float32))
    with torch.inference_mode():
        return [
            [float(number) for number in log_probs(window)[:-1].gather(1, torch.tensor(window[1:])[:, None])[:, 0]]
            for window in windows
        ]
