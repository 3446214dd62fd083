"""Changes: single changes to what is asked for that make it fit, each the smallest of its kind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import expm1, log1p

from llmpq.fix import ChangeKind
from llmpq.planning.candidates import Candidate, rule_context
from llmpq.planning.fit import asked, least_loss
from llmpq.planning.largest import first
from llmpq.precision import CachePrecision
from llmpq.program import Program, Request, Target
from llmpq.solver.loosen import looser
from llmpq.solver.rules import Rule
from llmpq.workload import with_length

LENGTHS: tuple[tuple[ChangeKind, str], ...] = (
    ("batch_size", "batch size"),
    ("prompt_len", "prompt length"),
    ("gen_len", "generated length"),
)
Question = Callable[[Program], bool]  # whether it fits; TimeLimitError when nobody wants to wait for the answer
LEAST_SHARE = 16  # of a length: to less than that part of it nobody would go
PER_MILLE = 1e-3  # of perplexity: a quality target is rounded up to a multiple


@dataclass(frozen=True, slots=True)
class Change:
    """One change: in words, how to ask for it, the request that it makes, the KV cache's precision where that changes."""

    kind: ChangeKind
    words: str
    how: str
    request: Request
    cached_at: CachePrecision | None = None


def rule_changes(program: Program, fits: Question) -> Iterator[Change]:
    """For every rule that alone is in the way: its nearest weaker form that fits, or the request without it."""
    request = program.request
    context = rule_context(program, Candidate(tuple(range(len(request.cluster.devices))), 1, 1))
    for rule in request.rules:
        without = _with_rule(request, rule, ())
        if not fits(replace(program, request=without)):
            continue
        forms = {weaker: _with_rule(request, rule, (weaker,)) for weaker in looser(rule, context)}
        found = first(lambda item: fits(replace(program, request=item)), tuple(forms.values()))
        if found is None:
            yield Change("rule", f"no constraint {rule.text!r}", f"leave out --constraint {rule.text!r}", without)
        else:
            text = next(weaker.text for weaker, changed in forms.items() if changed == found)
            yield Change("rule", f"constraint {text!r} instead of {rule.text!r}", f"--constraint {text!r}", found)


def _with_rule(request: Request, rule: Rule, instead: tuple[Rule, ...]) -> Request:
    rules = tuple(kept for item in request.rules for kept in (instead if item is rule else (item,)))
    return replace(request, rules=rules)


def budget_changes(program: Program, fits: Question) -> Iterator[Change]:
    """The least quality budget that fits, where one was asked for, rounded up to a thousandth of perplexity."""
    target = program.request.target
    if target.budget is None or not target.explicit:
        return
    at_any_loss = replace(program, request=replace(program.request, target=Target(None)))
    if not fits(at_any_loss):
        return
    least = least_loss(at_any_loss)
    if least is None:
        return
    increase = (int(expm1(least) / PER_MILLE) + 1) * PER_MILLE
    changed = replace(program.request, target=Target(log1p(increase), explicit=True))
    before = f"{expm1(target.budget):.3g} ({target.budget:.4g} nats per token)"
    words = f"perplexity increase {increase:.3f} ({log1p(increase):.4f} nats per token) instead of {before}"
    yield Change("budget", words, f"--max-ppl-increase {increase:.3f}", changed)


def workload_changes(program: Program, fits: Question) -> Iterator[Change]:
    """The largest batch, the longest prompt and the longest generation that fit, the others as they are."""
    request = program.request
    for kind, words in (item for item in LENGTHS if hasattr(request.workload, item[0])):
        before: int = getattr(request.workload, kind)
        shorter = tuple(with_length(request.workload, kind, value) for value in range(before - 1, before // LEAST_SHARE, -1))
        found = first(lambda workload: fits(asked(program, replace(request, workload=workload))), shorter)
        if found is not None:
            value = getattr(found, kind)
            how = f"--{kind.replace('_', '-')} {value}"
            yield Change(kind, f"{words} {value} instead of {before}", how, replace(request, workload=found))
