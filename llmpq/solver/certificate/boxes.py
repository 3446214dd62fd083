"""StageBox: the stages of a box of slowest stages, their weak dual, and every path of them below a cutoff."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmpq.solver.certificate.front import undominated
from llmpq.solver.certificate.layers import LayerCosts
from llmpq.solver.certificate.scaled import Scaled
from llmpq.solver.certificate.stages import Stage
from llmpq.solver.certificate.weights import ONE, Weights, below

GRAINS = 64  # grains of cost that a stage may lose to rounding down, per device, in the distance from bound to objective
MOST_PATHS = 400_000  # of a leaf; more would take minutes


class TooManyPathsError(Exception):
    """A leaf has more paths than a checker should walk."""


@dataclass(frozen=True, slots=True)
class StageBox:
    """Stages below the high ends; the low ends are those of the first stage at or above them, as the slowest is a stage."""

    costs: LayerCosts
    stages: list[Stage]

    @staticmethod
    def of(scaled: Scaled, weights: Weights, first: int, listed: list[Stage]) -> "StageBox":
        high = weights.high
        stages = [stage for stage in listed if below(stage.slow_prefill, high[0]) and below(stage.slow_decode, high[1])]
        prefill = min((stage.slow_prefill for stage in stages if stage.slow_prefill >= weights.low[0]), default=None)
        decode = min((stage.slow_decode for stage in stages if stage.slow_decode >= weights.low[1]), default=None)
        if prefill is None or decode is None:
            return StageBox(LayerCosts(scaled, weights, first), [])
        return StageBox(LayerCosts(scaled, replace(weights, low=(prefill, decode)), first), stages)

    @property
    def scaled(self) -> Scaled:
        return self.costs.scaled

    @property
    def weights(self) -> Weights:
        return self.costs.weights

    @property
    def source(self) -> int:
        return self.costs.first * (self.scaled.layers + 1)

    @property
    def end(self) -> int:
        return self.scaled.devices * (self.scaled.layers + 1)

    def value(self) -> int | None:
        """A lower bound of every objective in the box; None: no assignment below the cutoff of the listing lies in it."""
        weights, (low_prefill, low_decode) = self.weights, self.weights.low
        rest: list[int | None] = [None] * self.end + [0]
        for start, stop, j, prefill, decode, slow_prefill, slow_decode, nats, loss in reversed(self.stages):
            after = rest[stop]
            if after is None:
                continue
            cost = (prefill + loss) * ONE + decode * weights.sum_decode + nats * weights.budget + after
            if slow_prefill > low_prefill:
                cost += weights.prefill[j] * (slow_prefill - low_prefill)
            if slow_decode > low_decode:
                cost += weights.decode[j] * (slow_decode - low_decode)
            here = rest[start]
            if here is None or cost < here:
                rest[start] = cost
        least = rest[self.source]
        low = weights.total_prefill * low_prefill + weights.total_decode * low_decode
        return None if least is None else least + low - weights.budget * (self.scaled.budget or 0)

    def paths_above(self, cutoff: int, room: int) -> bool:
        """Whether no path within the budget costs less than the cutoff; costs are rounded down to a small part of the room.

        The cost of a path is the larger of two sums: by the sum of the round trip, and by its slowest stage.
        """
        grain = max(1, room // (GRAINS * self.scaled.devices))
        return not any(True for _ in PathWalk.of(self, grain, -(-cutoff // grain)).below_cutoff())

    def rows(self, grain: int) -> tuple[list[int], list[int], tuple[int, int]]:
        """By stage, and before all of them: what a path costs by sums and by the slowest stage, in grains, rounded down."""
        scaled, weights, low = self.scaled, self.weights, self.weights.low
        at_work = weights.total_prefill * low[0]
        if not scaled.rounds:
            at_work += weights.total_decode * low[1]
            work = [self._both(s, weights.decode[s.device]) + s.decode * weights.sum_decode for s in self.stages]
            return [cost // grain for cost in work], [0] * len(work), (at_work // grain, 0)
        trip, total = ONE * scaled.rounds * scaled.micro_batches, sum(weights.decode)
        carried = [u * trip // total if total else trip // scaled.devices for u in weights.decode]
        work = [(self._both(s, 0) + s.decode * ONE * scaled.rounds) // grain for s in self.stages]
        slow = [self._both(s, carried[s.device]) // grain for s in self.stages]
        return work, slow, (at_work // grain, (at_work + trip * low[1]) // grain)

    def _both(self, stage: Stage, decode: int) -> int:
        return (stage.prefill + stage.loss) * ONE + self._over(stage, self.weights.prefill[stage.device], decode)

    def _over(self, stage: Stage, prefill: int, decode: int) -> int:
        """What is charged for being slower than the low ends."""
        low = self.weights.low
        return prefill * max(stage.slow_prefill - low[0], 0) + decode * max(stage.slow_decode - low[1], 0)


def least_to_end(stages: list[Stage], costs: list[int], end: int) -> list[int | None]:
    """Least cost from every state to the end; stages are sorted by start, and lead on."""
    rest: list[int | None] = [None] * end + [0]
    for stage, cost in zip(reversed(stages), reversed(costs)):
        after, here = rest[stage.stop], rest[stage.start]
        if after is not None and (here is None or cost + after < here):
            rest[stage.start] = cost + after
    return rest


@dataclass(frozen=True, slots=True)
class PathWalk:
    """Paths from the source, state by state, but for those that cannot end below the cutoff or that another is no worse than.

    rows [stage]: work, slow, sensitivity, mix; rest [row][state]; mix = share * work + (ONE - share) * slow + ONE * price.
    """

    box: StageBox
    rows: tuple[list[int], list[int], list[int], list[int]]
    rest: tuple[list[int | None], ...]
    at_start: tuple[int, int, int, int]
    cutoff: int

    @staticmethod
    def of(box: StageBox, grain: int, cutoff: int) -> "PathWalk":
        scaled, weights = box.scaled, box.weights
        work, slow, at_start = box.rows(grain)
        share = weights.share
        nats = [stage.sensitivity if scaled.budget is not None else 0 for stage in box.stages]
        price = [weights.budget * value // grain for value in nats]
        mix = [share * w + (ONE - share) * s + ONE * p for w, s, p in zip(work, slow, price)]
        rest = tuple(least_to_end(box.stages, row, box.end) for row in (work, slow, nats, mix))
        spent = -(-weights.budget * (scaled.budget or 0) // grain)
        start = share * at_start[0] + (ONE - share) * at_start[1] - ONE * spent
        return PathWalk(box, (work, slow, nats, mix), rest, (*at_start, 0, start), cutoff)

    def below_cutoff(self) -> Iterator[tuple[int, int]]:
        """(work, slow) of paths that reach the end below the cutoff."""
        fronts: dict[int, list[tuple[int, int, int, int]]] = {self.box.source: [self.at_start]}
        starts = [stage.start for stage in self.box.stages]
        made = 0
        for state in range(self.box.end):
            items = range(bisect_left(starts, state), bisect_right(starts, state))
            for path in undominated(fronts.pop(state, [])):
                for item in items:
                    stop = self.box.stages[item].stop
                    new = tuple(value + row[item] for value, row in zip(path, self.rows))
                    if not self._may_end_below(new, stop):
                        continue
                    if stop == self.box.end:
                        yield new[0], new[1]
                        continue
                    made += 1
                    if made > MOST_PATHS:
                        raise TooManyPathsError
                    fronts.setdefault(stop, []).append((new[0], new[1], new[2], new[3]))

    def _may_end_below(self, path: tuple[int, ...], state: int) -> bool:
        work, slow, nats, mix = (row[state] for row in self.rest)
        if work is None or slow is None or nats is None or mix is None:
            return False
        budget = self.box.scaled.budget
        return (
            path[3] + mix < self.cutoff * ONE
            and path[0] + work < self.cutoff
            and path[1] + slow < self.cutoff
            and (budget is None or path[2] + nats <= budget)
        )
