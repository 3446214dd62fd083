"""Bounds of teams: what a pipeline on each set of devices can do at most, by sums alone and for all sets at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from llmpq.costs import CostTable, PhaseCosts
from llmpq.planning.candidate import Candidate
from llmpq.planning.rounds import cache_bytes
from llmpq.planning.shares import Shares
from llmpq.planning.teams import Teams
from llmpq.program import Program
from llmpq.workload import Serving

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TeamBounds:
    """Layers dealt out as fractions, each at its least option, over the devices of a team in proportion to their speed."""

    program: Program
    teams: Teams

    def tokens_per_s(self) -> "Floats":
        """[team] at most, when serving with all devices of the team."""
        import numpy as np

        workload, counts = self.program.request.workload, self._counts()
        assert isinstance(workload, Serving)
        costs: CostTable = self.program.require("costs")
        most = np.zeros(len(counts))
        for step in costs.steps:
            decode, prefill = costs.phase("decode", step.sequences), costs.phase("prefill", step.token_budget)
            trip, slowest = self._layers(decode, counts)
            for size, chosen in _by_size(counts):
                candidate = Candidate((0,) * size, step.token_budget, step.sequences, size)
                least = np.maximum(trip[chosen], size * slowest[chosen])
                fits = self._fits(self.program, candidate, (prefill, decode), counts[chosen])
                rates = np.where(fits, candidate.running / np.maximum(least, 1e-300), 0.0)
                most[chosen] = np.maximum(most[chosen], rates)
        return most

    def batch_seconds(self, shares: Shares, sizes: Iterable[int]) -> "Floats":
        """[team, share] at least, for a batch of each of the sizes with all devices of the team; inf where it cannot fit."""
        import numpy as np

        counts = self._counts()
        return np.stack([self._share_seconds(shares, share, counts) for share in sizes], axis=1)

    def most_tokens_per_s(self) -> float:
        """Of any pipelines on all devices, when serving: every device at its best step of its fastest layer."""
        costs: CostTable = self.program.require("costs")
        best = [0.0 for _ in self.teams.kinds]
        for phase in costs.decode:
            seconds = self._seconds(phase)
            best = [max(rate, phase.micro_batch / max(float(s), 1e-300)) for rate, s in zip(best, seconds)]
        return sum(rate * count for rate, count in zip(best, self.teams.there)) / self.program.graph.num_layers

    def least_batch_seconds(self, shares: Shares) -> float:
        """Of any pipelines on all devices, for the whole batch: every device at its best sizes of its fastest layer."""
        batch, speed, tables = shares.batch, 0.0, [program.require("costs") for program in shares.programs.values()]
        for kind, count in enumerate(self.teams.there):
            first, later = (
                min(float(self._seconds(phase)[kind]) / phase.micro_batch for costs in tables for phase in getattr(costs, name))
                for name in ("prefill", "decode")
            )
            speed += count / max(first + (batch.gen_len - 1) * later, 1e-300)
        return batch.batch_size * self.program.graph.num_layers / speed if speed else inf

    def _share_seconds(self, shares: Shares, share: int, counts: "Floats") -> "Floats":
        import numpy as np

        program = shares.program_of(share)
        costs, rounds = program.require("costs"), program.request.workload.gen_len - 1
        prefills = {phase.micro_batch: (phase, *self._layers(phase, counts)) for phase in costs.prefill}
        decodes = {phase.micro_batch: (phase, *self._layers(phase, counts)) for phase in costs.decode}
        least = np.full(len(counts), np.inf)
        for size, chosen in _by_size(counts):
            for p, d in shares.sizes(share, size):
                (first, fill, slow_fill), (second, trip, slow_trip) = prefills[p], decodes[d]
                prefill = fill[chosen] + (-(-share // p) - 1) * slow_fill[chosen]
                decode = rounds * np.maximum(trip[chosen], -(-share // d) * slow_trip[chosen])
                fits = self._fits(program, Candidate((0,) * size, p, d), (first, second), counts[chosen])
                least[chosen] = np.fmin(least[chosen], np.where(fits, prefill + decode, np.inf))
        return least

    def _counts(self) -> "Floats":
        """[team, kind of device] devices."""
        import numpy as np

        return np.array([team.taken for team in self.teams.members], dtype=np.float64)

    def _layers(self, phase: PhaseCosts, counts: "Floats") -> "tuple[Floats, Floats]":
        """[team] seconds of all layers one after the other, and of the slowest stage, at least."""
        import numpy as np

        layers, seconds = self.program.graph.num_layers, self._seconds(phase)
        together = counts @ (1.0 / np.maximum(seconds, 1e-300))
        fastest = np.where(counts > 0, seconds, np.inf).min(axis=1)
        return layers * fastest, np.divide(layers, together, out=np.full(len(counts), np.inf), where=together > 0)

    def _seconds(self, phase: PhaseCosts) -> "Floats":
        """[kind of device] of the fastest layer at its fastest option; inf where none is supported."""
        import numpy as np

        kinds = range(len(self.program.graph.kinds))
        cells = [[cell for kind in kinds for cell in phase.layer_s[kind][group[0]]] for group in self.teams.kinds]
        return np.array([min((cell for cell in row if cell is not None), default=np.inf) for row in cells])

    def _fits(
        self, program: Program, candidate: Candidate, phases: tuple[PhaseCosts, PhaseCosts], counts: "Floats"
    ) -> "NDArray[np.bool_]":
        """[team] whether weights and cache fit into the devices' memory as if it were one."""
        import numpy as np

        costs, devices = program.require("costs"), program.request.cluster.devices
        least = [max(phase.least_activations(group[0]) for phase in phases) for group in self.teams.kinds]
        each = [min(weights) + cache for weights, cache in zip(costs.layer_bytes, cache_bytes(program, candidate))]
        ends = costs.first_bytes + (costs.last_bytes_with_first if len(candidate.order) == 1 else costs.last_bytes)
        needed = sum(each[kind] for kind in program.graph.layer_kind) + ends
        room = np.array(
            [devices[group[0]].capacity_bytes - live for group, live in zip(self.teams.kinds, least)], dtype=np.float64
        )
        fits: NDArray[np.bool_] = counts @ room >= needed
        return fits


def _by_size(counts: "Floats") -> "list[tuple[int, NDArray[np.intp]]]":
    """Numbers of devices, and the teams of each."""
    import numpy as np

    sizes = counts.sum(axis=1)
    return [(int(size), np.flatnonzero(sizes == size)) for size in np.unique(sizes)]
