"""Schedule: the actions of every stage of a pipeline, in order, as data with a text form."""

import re
from dataclasses import dataclass
from typing import Literal

from llmpq.errors import BackendError
from llmpq.plan import Plan
from llmpq.runtime.timeline import Action, timeline

_ACTION = re.compile(r"([PD])(\d+)")
_HEADER = re.compile(r"schedule: (\d+) P per D")


@dataclass(frozen=True, slots=True)
class Schedule:
    """`rows[j]` is what stage j does slot by slot, None where it idles.

    `P3` prefills micro-batch 3, `D1` is the next token of decode micro-batch 1, which holds the prefill micro-batches
    [1 * prefill_per_decode, 2 * prefill_per_decode). Whatever an action needs was done in an earlier slot.
    """

    rows: tuple[tuple[Action | None, ...], ...]
    prefill_per_decode: int

    def actions(self, stage: int) -> tuple[Action, ...]:
        """What the stage does, without the idle slots."""
        return tuple(action for action in self.rows[stage] if action is not None)

    def __str__(self) -> str:
        cells = [[str(action) if action else "." for action in row] for row in self.rows]
        width = max((len(cell) for row in cells for cell in row), default=1)
        lines = [f"{stage}: {' '.join(cell.ljust(width) for cell in row)}".rstrip() for stage, row in enumerate(cells)]
        return "\n".join([f"schedule: {self.prefill_per_decode} P per D", *lines]) + "\n"


def schedule(
    num_stages: int, prefill_micro_batches: int, decode_micro_batches: int, gen_len: int, prefill_per_decode: int | None = None
) -> Schedule:
    """Every prefill micro-batch, then gen_len - 1 rounds of the decode micro-batches, first in first out.

    A slot is one action of one stage. A decode micro-batch re-enters stage 0 when its tokens have returned from the last
    stage. `prefill_per_decode` defaults to an even share; 0 prefill micro-batches gives the decode rounds alone.
    """
    share = prefill_per_decode or max(1, -(-prefill_micro_batches // max(1, decode_micro_batches)))
    if min(num_stages, decode_micro_batches, gen_len) < 1 or prefill_micro_batches not in _allowed(share, decode_micro_batches):
        raise BackendError(
            f"schedule: {num_stages} stages, {prefill_micro_batches} prefill and {decode_micro_batches} decode micro-batches of "
            f"{share} prefill micro-batches each, {gen_len} tokens; expected at least one of each and no decode micro-batch empty"
        )
    prefill = [Action("P", index) for index in range(prefill_micro_batches)]
    decode = [Action("D", index) for index in range(decode_micro_batches)]
    actions = tuple(prefill + decode * (gen_len - 1))
    starts = timeline((actions,) * num_stages, share, lambda stage, action: 1.0, lambda stage, action: 0.0).starts
    length = max((int(start) + 1 for row in starts for start in row), default=0)
    return Schedule(tuple(_placed(actions, row, length) for row in starts), share)


def plan_schedule(plan: Plan) -> Schedule:
    """Of one round of the plan's batch."""
    pipeline, batch = plan.pipeline, plan.batch
    prefill, decode = (-(-batch.batch_size // size) for size in (pipeline.prefill_micro_batch, pipeline.decode_micro_batch))
    share = pipeline.decode_micro_batch // pipeline.prefill_micro_batch
    return schedule(len(plan.stages), prefill, decode, batch.gen_len, share)


def parse_schedule(text: str) -> Schedule:
    """The schedule that prints as `text`; raises BackendError naming the line that is malformed."""
    header, *lines = text.rstrip("\n").split("\n")
    match = _HEADER.fullmatch(header)
    if not match:
        raise BackendError(f"schedule, line 1: found {header!r}, expected 'schedule: N P per D'")
    return Schedule(tuple(_parse_row(stage, line) for stage, line in enumerate(lines)), int(match[1]))


def _parse_row(stage: int, line: str) -> tuple[Action | None, ...]:
    label, *cells = line.split() or [""]
    if label != f"{stage}:":
        raise BackendError(f"schedule, line {stage + 2}: found {label!r}, expected '{stage}:'")
    return tuple(None if cell == "." else _parse_action(stage, cell) for cell in cells)


def _parse_action(stage: int, cell: str) -> Action:
    match = _ACTION.fullmatch(cell)
    if not match:
        raise BackendError(f"schedule, line {stage + 2}: found {cell!r}, expected P<n>, D<n> or '.'")
    phase: Literal["P", "D"] = "P" if match[1] == "P" else "D"
    return Action(phase, int(match[2]))


def _allowed(share: int, decode_micro_batches: int) -> set[int]:
    """Numbers of prefill micro-batches that leave only the last decode micro-batch partly filled, and 0."""
    return {0, *range(share * (decode_micro_batches - 1) + 1, share * decode_micro_batches + 1)}


def _placed(actions: tuple[Action, ...], starts: tuple[float, ...], length: int) -> tuple[Action | None, ...]:
    row: list[Action | None] = [None] * length
    for action, start in zip(actions, starts):
        row[int(start)] = action
    return tuple(row)
