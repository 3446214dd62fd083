"""Score stores: where what was measured of one model on one text is kept, in the user's cache."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llmpq.cache import cache_folder
from llmpq.checkpoint.reader import Checkpoint
from llmpq.store import Store

SAMPLES, SAMPLE_BYTES = 64, 4096  # of each weight file, spread evenly: two trainings of one model differ nearly everywhere
DECIDING = (
    "../fx/experts",
    "cache_codecs",
    "clipping",
    "fake_quantization",
    "fisher",
    "grids",
    "output_noise",
    "prefix",
    "rounded_cache",
    "rounding",
    "scoring",
)  # modules that figures depend on


def score_store(checkpoint: Checkpoint, token_ids: Sequence[int]) -> Store:
    """The store of a model on a text, whatever their paths; another one when the code that measures has changed."""
    digest = hashlib.sha256(f"{fingerprint(checkpoint)} {list(token_ids)}".encode())
    for module in DECIDING:
        digest.update((Path(__file__).parent / f"{module}.py").read_bytes())
    return Store(cache_folder() / "scores" / digest.hexdigest()[:24])


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest of the configuration and of bytes sampled from every weight file."""
    digest = hashlib.sha256(repr(sorted(checkpoint.config.items())).encode())
    for path in sorted({file.path for file in checkpoint.files.values()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * sample // (SAMPLES - 1) if size > SAMPLE_BYTES else 0)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
