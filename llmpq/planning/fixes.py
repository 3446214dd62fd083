"""Fixes: what to change in a request that no plan can meet, each change verified by planning again."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import process_time
from typing import TypeVar

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.fix import Fix
from llmpq.plan import Plan
from llmpq.planning.changes import Change, Question, budget_changes, rule_changes, workload_changes
from llmpq.planning.fit import asked, fits
from llmpq.planning.hardware_changes import device_changes, engine_changes, memory_changes
from llmpq.precision import CACHE_PRECISIONS, QUANTIZABLE, parse_precision
from llmpq.program import Program, Target
from llmpq.sensitivity import SensitivityTable, prior, with_prior_cache

GAP = 0.01  # relative, of the plans that verify: their speed is told to two digits
PLAN_LIMIT_S = 2.0  # of one of them
TIME_LIMIT_S = 10.0  # CPU seconds of all changes but for estimates: no further question is asked after that

T = TypeVar("T")
Estimate = Callable[[Program], SensitivityTable | None]  # None: it would take too long for an explanation


def find_fixes(program: Program, plan_again: Callable[[Program], Plan], estimate: Estimate) -> tuple[Fix, ...]:
    """Single changes, those of wishes before those of hardware, for a program that has no plan.

    `plan_again` makes the plan of a program whose costs are to be derived anew; a change that it refuses is left out.
    Nothing for a program that has a plan, such as one whose baseline was asked for and does not fit.
    """
    deadline = process_time() + TIME_LIMIT_S

    def question(other: Program) -> bool:
        if process_time() > deadline:
            raise TimeLimitError("the time for explanations is up")
        return fits(other)

    def unhurried(changed: Program) -> SensitivityTable | None:
        nonlocal deadline
        started = process_time()
        table = estimate(changed)
        deadline += process_time() - started
        return table

    sensitivity = program.sensitivity or estimate(program)
    if sensitivity is None:
        return ()
    program = asked(replace(program, sensitivity=sensitivity), program.request)
    try:
        changes = () if question(program) else _changes(program, question, unhurried)
    except TimeLimitError:
        return ()
    found = [fix for change, sensitivity in changes for fix in _verified(program, change, sensitivity, plan_again)]
    engines = sorted((fix for fix in found if fix.kind == "engine"), key=lambda fix: -fix.tokens_per_s)
    return tuple(fix for fix in found if fix.kind != "engine" or fix == engines[0])


def _verified(
    program: Program, change: Change, sensitivity: SensitivityTable, plan_again: Callable[[Program], Plan]
) -> Iterator[Fix]:
    request = replace(change.request, gap=max(GAP, program.request.gap), time_limit_s=PLAN_LIMIT_S)
    graph = program.graph if change.cached_at is None else program.graph.with_cache(change.cached_at)
    changed = replace(program, graph=graph, request=request, costs=None, compute_dtype=None, sensitivity=sensitivity)
    try:
        plan = plan_again(changed)
    except (InfeasibleError, TimeLimitError):
        return
    yield Fix(change.kind, change.words, change.how, plan.tokens_per_s, plan.quality.sensitivity)


def _changes(program: Program, fits: Question, estimate: Estimate) -> Iterator[tuple[Change, SensitivityTable]]:
    """Every change with the sensitivities of its precisions; kinds whose questions take too long are left out."""
    known = program.require("sensitivity")
    wishes, hardware = (rule_changes, budget_changes), (workload_changes, engine_changes, device_changes, memory_changes)
    for kind in wishes:
        yield from _in_time((change, known) for change in kind(program, fits))
    yield from _in_time(precision_changes(program, fits, estimate))
    yield from _in_time(cache_changes(program, fits, estimate))
    for kind in hardware:
        yield from _in_time((change, known) for change in kind(program, fits))


def _in_time(changes: Iterator[T]) -> Iterator[T]:
    try:
        yield from changes
    except TimeLimitError:
        return


def precision_changes(program: Program, fits: Question, estimate: Estimate) -> Iterator[tuple[Change, SensitivityTable]]:
    """One more precision, the most faithful that makes it fit."""
    request = program.request
    names = tuple(precision.name for precision in request.precisions)
    others = sorted((parse_precision(name) for name in QUANTIZABLE if name not in names), key=lambda p: -p.num_bits)
    for precision in others:
        changed = replace(request, precisions=(*request.precisions, precision))
        free, assumed = replace(changed, target=Target(None, explicit=True)), prior(program.graph, changed.precisions)
        if not fits(asked(replace(program, sensitivity=assumed), free)):
            continue  # whatever it costs, which an indicator may take long to tell
        sensitivity = estimate(replace(program, request=changed, sensitivity=None))
        if sensitivity is None:
            return
        if not fits(asked(replace(program, sensitivity=sensitivity), changed)):
            continue
        wanted = ",".join((*names, precision.name))
        yield Change("precisions", f"{precision.name} allowed as well", f"--precisions {wanted}", changed), sensitivity
        return


def cache_changes(program: Program, fits: Question, estimate: Estimate) -> Iterator[tuple[Change, SensitivityTable]]:
    """A rounded KV cache, the most faithful that makes it fit."""
    if program.graph.cached_at != "16":
        return
    for kept in CACHE_PRECISIONS[1:]:
        changed = replace(program, graph=program.graph.with_cache(kept), sensitivity=None)
        sensitivity = estimate(changed) or with_prior_cache(program.require("sensitivity"), changed.graph)
        if fits(asked(replace(changed, sensitivity=sensitivity), program.request)):
            words = f"KV cache at {kept} instead of 16 bits"
            yield Change("cache", words, f"--kv-precision {kept}", program.request, kept), sensitivity
            return
