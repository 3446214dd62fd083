"""Option sets: fewer options where the others need much more memory while they compute."""

from itertools import combinations

from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.planning.baselines import with_plan
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.fallback import Answer
from llmpq.planning.option_sets import live_bytes, only_options, option_sets, sets_with
from llmpq.planning.robust import choice_of
from llmpq.planning.search import search
from llmpq.precision import parse_precisions
from llmpq.program import Program, Request, Target
from llmpq.workload import Batch
from tests.values import llama_graph, two_cpus

LONG = Batch(4, 256, 2)


def planned(memory: str, engine: str = "local") -> Program:
    request = Request(two_cpus(memory, memory), LONG, parse_precisions("16,w8a8,w4a16"), Target(budget=None), (), engine)
    return run_passes(Program(llama_graph(), request), parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior}"))


def test_every_set_of_options_has_a_set_that_needs_no_more_than_they_do() -> None:
    ready = planned("4 MiB")
    costs = ready.require("costs")
    phases = (costs.phase("prefill", 4), costs.phase("decode", 4))
    sets = option_sets(ready, 4, 4)
    assert sets[0] is None
    assert len(set(sets)) == len(sets) == 3
    for count in (1, 2, 3):
        for used in combinations(range(3), count):
            chosen = sets_with(ready, 4, 4, set(used))[-1]
            assert chosen is None or set(used) <= set(chosen)
            for is_first in (True, False):
                assert live_bytes(phases, 0, chosen, is_first) == live_bytes(phases, 0, used, is_first)


def test_an_engine_whose_options_need_the_same_has_one_set() -> None:
    assert option_sets(planned("4 MiB", "transformers"), 4, 4) == (None,)


def test_a_problem_of_fewer_options_has_more_room_and_forbids_the_others() -> None:
    ready = planned("4 MiB")
    whole = build_problem(ready, Candidate((0, 1), 4, 4), None)
    for options in option_sets(ready, 4, 4)[1:]:
        narrow = build_problem(ready, Candidate((0, 1), 4, 4, options=options), None)
        assert all(a > b for a, b in zip(narrow.capacity_bytes, whole.capacity_bytes))
        assert narrow.supported(0, 0) == options
        assert only_options(narrow, options) == narrow


def test_a_plan_is_found_that_only_fits_without_the_option_that_needs_the_most() -> None:
    """Memory falls until the set of all options fits at no size: fewer options still do, and what they make is a plan."""
    for kib in range(2600, 600, -50):
        ready = planned(f"{kib} KiB")
        found = search(ready, None)
        if found is not None and found.candidate.options is not None:
            break
    assert found is not None
    assert found.candidate.options is not None
    used = set(found.assignment.option)
    assert used <= set(found.candidate.options)


def test_a_plan_that_was_written_down_is_held_to_what_its_own_options_need() -> None:
    ready = planned("4 MiB")
    found = search(ready, None)
    assert found is not None
    plan = with_plan(ready, "test", Answer(found, None)).require("plan")
    candidate, assignment = choice_of(ready, plan)
    problem = build_problem(ready, candidate, None)
    held = {memory.device: memory.total for memory in plan.prediction.memory}
    assert all(held[device] <= ready.request.cluster.device(device).capacity_bytes for device in held)
    assert all(option in problem.supported(0, device) for device, option in zip(assignment.device, assignment.option))
