"""Work key: a name for everything that decides about the bytes of an output, under which a killed compile is found again."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from llmpq.checkpoint.reader import Checkpoint
from llmpq.plan import Plan
from llmpq.quantization.quantizers import Quantizer
from llmpq.serialize import to_json
from llmpq.versions import library_versions

DIGITS = 16


def work_key(checkpoint: Checkpoint, plan: Plan, quantizer: Quantizer) -> str:
    """Hexadecimal digits, the same for the same model files, plan, quantizer, calibration, libraries and number of threads.

    Files are known by name, size, time of change and header; reading all their bytes would take as long as rounding them.
    """
    decides = {
        "model": {"config": checkpoint.config, "files": _files(checkpoint)},
        "plan": to_json(plan),
        "quantizer": quantizer.describe(),
        "versions": library_versions(),
        "threads": torch.get_num_threads(),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _files(checkpoint: Checkpoint) -> list[Any]:
    found: dict[Path, Any] = {}
    for file in checkpoint.files.values():
        if file.path not in found:
            status = file.path.stat()
            tensors = [(info.name, str(info.dtype), info.shape) for info in file.infos.values()]
            found[file.path] = (file.path.name, status.st_size, status.st_mtime_ns, tensors)
    return [found[path] for path in sorted(found)]
