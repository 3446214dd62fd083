"""What transformers makes of an output directory, and what it had to say about it."""

import logging
from pathlib import Path
from typing import Any

import torch


def load_by_transformers(out: Path, dtype: torch.dtype | None = None) -> tuple[Any, list[str]]:
    """The model, and every warning, missing, unexpected or mismatched key."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Keep(logging.WARNING)
    transformers_logging.get_logger("transformers").addHandler(handler)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=dtype or "auto", output_loading_info=True)
    finally:
        transformers_logging.get_logger("transformers").removeHandler(handler)
    model, info = loaded
    wrong = [f"{key}: {value}" for key, value in info.items() if value]
    return model.eval(), records + wrong
