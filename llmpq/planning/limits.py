"""Limits: the longest context and the largest batch that fit, for each choice of precisions, and who is short beyond."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmpq.errors import InputError, TimeLimitError
from llmpq.planning.fit import FIT_LIMIT_S, asked, fits, least_loss
from llmpq.planning.largest import largest
from llmpq.planning.reasons import nearest
from llmpq.planning.search import rows_of
from llmpq.planning.space import EVERYTHING
from llmpq.program import Program, Request, Target
from llmpq.sensitivity import SensitivityTable
from llmpq.solver.explain import short_devices
from llmpq.units import format_bytes
from llmpq.workload import Batch, with_length

LOSS_LIMIT_S = 1.0  # after that the least loss found so far is told
LARGEST_BATCH = 2**20  # sequences: nobody asks for more


@dataclass(frozen=True, slots=True)
class Limit:
    """`largest`: context in tokens, or sequences; None when not even one fits.

    `budget`: nats per token that the precisions had to keep, None: any loss; `sensitivity`: the least found at the limit.
    `limited_by`: who is short by how much one token or sequence further on, or that this could not be told in time.
    """

    precisions: tuple[str, ...]
    budget: float | None
    largest: int | None
    sensitivity: float | None
    limited_by: tuple[str, ...]


def max_context(program: Program) -> tuple[Limit, ...]:
    """Prompt and generation together, the batch size and the generated length as asked for."""
    batch = _batch(program)
    longest = program.graph.max_positions + 1 - batch.gen_len  # prompt; the last token has no position
    return tuple(
        _shifted(_limit(choice, "prompt_len", longest, f"the model has {program.graph.max_positions} positions"), batch.gen_len)
        for choice in choices(program)
    )


def max_batch(program: Program) -> tuple[Limit, ...]:
    """Sequences generated together, their lengths as asked for."""
    _batch(program)
    return tuple(_limit(choice, "batch_size", LARGEST_BATCH, "no larger batch was tried") for choice in choices(program))


def choices(program: Program) -> Iterator[Program]:
    """The program with every precision alone, with all of them, at any loss; and with all of them within the quality target."""
    request = program.request
    for index, precision in enumerate(request.precisions if len(request.precisions) > 1 else ()):
        table: SensitivityTable = program.require("sensitivity")
        column = replace(table, options=(precision.name,), rows=tuple((row[index],) for row in table.rows))
        yield replace(program, request=replace(request, precisions=(precision,), target=Target(None)), sensitivity=column)
    yield replace(program, request=replace(request, target=Target(None)))
    if request.target.budget is not None:
        yield replace(program, request=replace(request, target=Target(request.target.budget, explicit=True)))


def _batch(program: Program) -> Batch:
    workload = program.request.workload
    if not isinstance(workload, Batch):
        raise InputError("the limits are those of a batch; leave out --rate and --trace")
    return workload


def _limit(program: Program, field: str, most: int, beyond: str) -> Limit:
    request = program.request
    undecided: set[int] = set()

    def holds(value: int) -> bool:
        try:
            return fits(_at(program, field, value))
        except TimeLimitError:
            undecided.add(value)
            return False

    found = largest(holds, 1, most) if most >= 1 else None
    names = tuple(precision.name for precision in request.precisions)
    loss = None if found is None else least_loss(_at(program, field, found), LOSS_LIMIT_S)
    following = (found or 0) + 1
    if found == most:
        by: tuple[str, ...] = (beyond,)
    elif following in undecided:
        by = (f"whether one more fits was not decided in {FIT_LIMIT_S:g} s",)
    else:
        by = _in_the_way(_at(program, field, following))
    return Limit(names, request.target.budget, found, loss, by)


def _at(program: Program, field: str, value: int) -> Program:
    request: Request = program.request
    return asked(program, replace(request, workload=with_length(request.workload, field, value)))


def _in_the_way(program: Program) -> tuple[str, ...]:
    """Devices and bytes short; where memory alone is not, the support of the precisions and the rules are."""
    candidate, problem, short = nearest(program, EVERYTHING)
    found, _ = short_devices(problem, rows_of(program, candidate), short)
    told = tuple(f"{device} is {format_bytes(missing)} short" for device, missing in found)
    return told or ("the constraints and the supported precisions",)


def _shifted(limit: Limit, tokens: int) -> Limit:
    """The limit with tokens that were not asked about."""
    return replace(limit, largest=None if limit.largest is None else limit.largest + tokens)
