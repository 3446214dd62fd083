"""Shares: what a second of a rank's CPU is worth when it comes in slices, beside one that is not held back."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from hetero.cgroups import Limits, groups
from hetero.engine import Host, engine_host
from hetero.rank_environment import GLOO

LAYERS = (4, 12)  # of the rank that is looked at, which is first and so waits for nobody, and of the one behind it
BEHIND = 0.6  # of a core
BLOCK, BLOCKS, LENGTH, SEQUENCES = 32, 30, 96, 8
PROMPT, GENERATED = 64, 8
RUNS = 3
JOB: dict[str, Any] = {"kind": "batch", "prompts": [[number + 1] * PROMPT for number in range(SEQUENCES)], "gen_len": GENERATED}


def worth_of_shares(shares: Iterable[float], model: Path, kv_bytes_per_token: int, log: Path) -> dict[float, float]:
    """Share of a core -> CPU seconds that a rank needs with a core of its own over those that it needs with that share.

    Slices of a few milliseconds find caches cold: the smaller the share, the more of them a step takes. kv_bytes_per_token: of
    one layer.
    """
    engine = {
        "model": str(model),
        "partition": list(LAYERS),
        "max_model_len": LENGTH,
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": PROMPT,
        "block_size": BLOCK,
        "environment": {GLOO: "1"},
        "kv_cache_memory_bytes": BLOCKS * BLOCK * kv_bytes_per_token * max(LAYERS),
    }
    with engine_host(log) as host:
        needed = {share: _cpu_s(host, engine, share) for share in dict.fromkeys((1.0, *shares))}
    return {share: needed[1.0] / seconds for share, seconds in needed.items()}


def _cpu_s(host: Host, engine: dict[str, Any], share: float) -> float:
    """Of the first rank's steps, with a share of a core; the median of runs after one that does not count."""
    with groups({"first": Limits(share), "second": Limits(BEHIND)}) as made:
        try:
            (facts,) = host.start([engine])
            for group, rank in zip(made.values(), facts["ranks"], strict=True):
                group.add(rank["pid"])
            host.run([JOB])
            runs = [host.run([JOB])[0]["parts"][0] for _ in range(RUNS)]
        finally:
            host.stop()
    return median(float(parts["step_cpu_s"] - parts.get("send_cpu_s", 0.0)) for parts in runs)
