"""Percentiles of what was simulated, as people ask for them."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmpq.simulation.simulator import Run


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds: mean, median, 90 and 99 %."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Service:
    """ttft: to the first token; tpot: between the tokens of an answer; latency: to the last token (None: no such figure)."""

    requests: int
    tokens_per_s: float
    requests_per_s: float
    ttft: Percentiles
    tpot: Percentiles | None
    latency: Percentiles
    busy: tuple[float, ...]
    peak_running: int
    preemptions: int
    steps: int


def percentiles(values: Iterable[float]) -> Percentiles:
    """By linear interpolation between the ordered values; at least one value."""
    import numpy as np

    found = np.fromiter(values, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(found, (50, 90, 99)))
    return Percentiles(float(found.mean()), p50, p90, p99)


def service(run: Run) -> Service:
    gaps = [served.tpot_s for served in run.served if served.tpot_s is not None]
    return Service(
        requests=len(run.served),
        tokens_per_s=run.tokens_per_s,
        requests_per_s=len(run.served) / run.duration_s,
        ttft=percentiles(served.ttft_s for served in run.served),
        tpot=percentiles(gaps) if gaps else None,
        latency=percentiles(served.latency_s for served in run.served),
        busy=run.busy,
        peak_running=run.peak_running,
        preemptions=run.preemptions,
        steps=run.steps,
    )
