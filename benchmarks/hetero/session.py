"""Session: one cluster made of throttled groups, in which configurations of vLLM are started, warmed and timed."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from hetero.calibration import Calibration, calibrate
from hetero.cgroups import Group, Limits, groups
from hetero.engine import Host, engine_host
from hetero.placing import Placed
from hetero.rank_environment import AVX2, GLOO, LINK, variables

from llmpq.hardware.cluster import Cluster

LEAST_S = 0.5  # of work at every length of a calibration
Job = dict[str, Any]
WARM_UP: Job = {"kind": "batch", "prompts": [[1] * 16, [2] * 16], "gen_len": 3}


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration under one load, `runs` in the order measured."""

    runs: tuple[dict[str, Any], ...]
    kv_blocks: tuple[int, ...]
    load_s: float

    @property
    def tokens_per_s(self) -> list[float]:
        return [run["tokens"] / run["seconds"] for run in self.runs]

    @property
    def median(self) -> float:
        return median(self.tokens_per_s)


@dataclass(frozen=True, slots=True)
class Session:
    """link_bytes_per_s: between ranks; None: as fast as they can."""

    cluster: Cluster
    host: Host
    limits: dict[str, Limits]
    made: dict[str, Group]
    link_bytes_per_s: float | None

    def calibrate(self) -> tuple[Calibration, ...]:
        """Repeated once where a device is off."""
        found = calibrate(self.limits, self.made, LEAST_S)
        return found if all(each.is_good for each in found) else calibrate(self.limits, self.made, LEAST_S)

    def measure(self, placed: Sequence[Placed], jobs: Sequence[Job], repeats: int, enough_s: float) -> Measured:
        """Engines side by side, a job each, all started together; the first run is a small one that does not count.
        Repeated until there are `repeats` or they took `enough_s`."""
        try:
            ready = self.host.start([self._engine(each) for each in placed])
            for each, facts in zip(placed, ready, strict=True):
                for device, rank in zip(each.settings.devices, facts["ranks"], strict=True):
                    self.made[device].add(rank["pid"])
            self.host.run([WARM_UP] * len(placed))
            runs = [_together(self.host.run(jobs))]
            while len(runs) < repeats and sum(run["seconds"] for run in runs) < enough_s:
                runs.append(_together(self.host.run(jobs)))
        finally:
            self.host.stop()
        return Measured(tuple(runs), tuple(facts["kv_blocks"] for facts in ready), max(facts["load_s"] for facts in ready))

    def _engine(self, placed: Placed) -> dict[str, Any]:
        types = [self.cluster.device(name).type.name for name in placed.settings.devices]
        engine = placed.engine()
        engine["environment"] = {GLOO: "1", LINK: "" if self.link_bytes_per_s is None else str(self.link_bytes_per_s)}
        if AVX2 in types:
            engine["rank_environments"] = [variables(name) for name in types]
        return engine


def _together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of engines that worked side by side, as one: done when the last is."""
    whole: dict[str, Any] = {
        "seconds": max(result["seconds"] for result in results),
        "tokens": sum(result["tokens"] for result in results),
    }
    if len(results) == 1 and "parts" in results[0]:
        whole["parts"] = results[0]["parts"]
    for name in ("ttft_s", "tpot_s"):
        if name in results[0]:
            whole[name] = median(value for result in results for value in result[name])
    return whole


@contextmanager
def session(cluster: Cluster, log: Path, slow_link: bool) -> Iterator[Session]:
    """Groups and warm host of a cluster whose devices' `speed` is their share of a core; all gone on leaving."""
    limits = {device.name: Limits(device.speed) for device in cluster.devices}  # memory: what vLLM's cache is given
    with ExitStack() as stack:
        made = stack.enter_context(groups(limits))
        host = stack.enter_context(engine_host(log))
        yield Session(cluster, host, limits, made, cluster.within_host.bandwidth_bytes_per_s if slow_link else None)
