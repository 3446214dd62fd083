"""Scaled: an assignment problem in integers: every second and nat times one power of two, without rounding."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from llmpq.solver.problem import RELATIVE_TOLERANCE, Matrix, Problem

Cells = tuple[tuple[tuple[int | None, ...], ...], ...]
Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Scaled:
    """Seconds and nats times `unit`; bytes as they are. Objective =

        sum P + slowest_prefill * max P + sum_decode * sum D + slowest_decode * max D
        + rounds * max(sum D, micro_batches * max D) + sum of loss

    loss: theta times sensitivity; first, last: prefill, decode, bytes [device]; budget: the most sensitivity that counts as
    within it; kind of a layer as in the problem.
    """

    unit: int
    devices: int
    layers: int
    kind: tuple[int, ...]
    prefill: Cells
    decode: Cells
    bytes: Cells
    sensitivity: Table
    loss: Table
    first: Table
    last: Table
    link_prefill: Table
    link_decode: Table
    overlap: bool
    capacity: tuple[int, ...]
    budget: int | None
    required: tuple[int, ...]
    slowest_prefill: int
    sum_decode: int
    slowest_decode: int
    rounds: int
    micro_batches: int

    @staticmethod
    def of(problem: Problem) -> "Scaled":
        theta = Fraction(problem.theta or 0.0)
        loss = [[theta * Fraction(value) for value in row] for row in problem.sensitivity]
        unit = max(value.denominator for value in (*_numbers(problem), *(value for row in loss for value in row)))
        rounds, batches, model = problem.gen_len - 1, problem.decode_micro_batches, problem.decode_model
        trip = model == "round_trip"
        return Scaled(
            unit=unit,
            devices=len(problem.devices),
            layers=problem.num_layers,
            kind=problem.layer_kind,
            prefill=_cells(problem.prefill_s, unit),
            decode=_cells(problem.decode_s, unit),
            bytes=problem.layer_bytes,
            sensitivity=_table(problem.sensitivity, unit),
            loss=tuple(tuple(int(value * unit) for value in row) for row in loss),
            first=(*_table((problem.first_stage.prefill_s, problem.first_stage.decode_s), unit), problem.first_stage.bytes),
            last=(*_table((problem.last_stage.prefill_s, problem.last_stage.decode_s), unit), problem.last_stage.bytes),
            link_prefill=_table(problem.link_prefill_s, unit),
            link_decode=_table(problem.link_decode_s, unit),
            overlap=problem.overlap,
            capacity=problem.capacity_bytes,
            budget=_budget(problem.sensitivity_budget, unit),
            required=problem.required_devices,
            slowest_prefill=problem.prefill_micro_batches - 1,
            sum_decode={"llm_pq": 1, "per_token_flush": rounds, "round_trip": 0}[model],
            slowest_decode=0 if trip else rounds * (batches - 1),
            rounds=rounds if trip else 0,
            micro_batches=batches,
        )

    def up(self, seconds: float | None) -> int | None:
        """Rounded up, so that an integer is below it as its seconds are; None stays."""
        return None if seconds is None else -int(-Fraction(seconds) * self.unit // 1)

    def first_devices(self) -> range:
        """Devices that may be the first used one."""
        return range(min(self.required, default=self.devices - 1) + 1)

    def may_follow(self, device: int, after: int) -> bool:
        return after > device and not any(device < other < after for other in self.required)

    def may_be_last(self, device: int) -> bool:
        return device >= max(self.required, default=0)


def _numbers(problem: Problem) -> Iterable[Fraction]:
    cells = (value for table in (problem.prefill_s, problem.decode_s) for kind in table for row in kind for value in row)
    ends = (problem.first_stage, problem.last_stage)
    rows = [*problem.sensitivity, *problem.link_prefill_s, *problem.link_decode_s]
    rows += [row for end in ends for row in (end.prefill_s, end.decode_s)]
    yield from (Fraction(value) for value in cells if value is not None)
    yield from (Fraction(value) for row in rows for value in row)


def _cells(cells: tuple[tuple[tuple[float | None, ...], ...], ...], unit: int) -> Cells:
    return tuple(tuple(tuple(None if x is None else _whole(x, unit) for x in row) for row in kind) for kind in cells)


def _table(rows: Matrix, unit: int) -> Table:
    return tuple(tuple(_whole(value, unit) for value in row) for row in rows)


def _whole(value: float, unit: int) -> int:
    """Exact: the unit is a multiple of every denominator, all of them powers of two."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * (unit // denominator)


def _budget(budget: float | None, unit: int) -> int | None:
    """With the tolerance of `evaluate`, rounded down: sums of sensitivity are whole."""
    if budget is None:
        return None
    tolerance = Fraction(RELATIVE_TOLERANCE)
    return int((Fraction(budget) + tolerance * max(abs(Fraction(budget)), tolerance)) * unit // 1)
