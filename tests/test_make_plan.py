"""From an assignment to a Plan: stages, memory and prediction are those of the evaluated problem."""

from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmpq.graph import Parameter
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Optimality
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.make_plan import make_plan
from llmpq.planning.search import search
from llmpq.program import Target
from llmpq.solver.problem import Assignment, evaluate
from llmpq.verify import plan_problems
from tests.random_programs import random_program
from tests.test_candidates import planned
from tests.values import llama_graph, program, two_cpus

GUESS = Optimality(1.0, None, False, "nobody")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_a_plan_says_what_its_problem_evaluates_to(seed: int) -> None:
    ready = random_program(seed, Target(budget=None))
    found = search(ready, None)
    assume(found is not None)
    assert found is not None
    optimality = Optimality(found.objective, found.bound, found.proven, "highs")
    plan = make_plan(ready, found.candidate, found.problem, found.assignment, optimality, None)
    evaluation = evaluate(found.problem, found.assignment)
    assert plan_problems(plan, ready) == []
    assert (plan.prediction.prefill_s, plan.prediction.decode_s) == (evaluation.prefill_s, evaluation.decode_s)
    assert plan.quality.sensitivity == evaluation.sensitivity
    for stage, memory in zip(plan.stages, plan.prediction.memory, strict=True):
        place = found.problem.devices.index(stage.device)
        used = memory.capacity - found.problem.capacity_bytes[place] + evaluation.bytes[place]
        assert memory.total <= used <= memory.capacity  # what the capacity was lowered by is enough for this very stage


def test_activations_are_those_of_the_layers_of_the_stage() -> None:
    """Two stages of unlike options: only the one with packed weights has a buffer to unpack them into."""
    ready = planned(program(cluster=two_cpus(), precisions="16,w8a8,w4a16"))
    candidate, phase = Candidate((0, 1), 8, 8), ready.require("costs").phase("prefill", 8)
    problem = build_problem(ready, candidate, None)
    for options in ((0, 0, 2, 2), (0, 2, 1, 1), (1, 0, 0, 2)):
        memory = make_plan(ready, candidate, problem, Assignment((0, 0, 1, 1), options), GUESS, None).prediction.memory
        held = [
            phase.activations.of_stage(j, ((0, option) for option in options[2 * j : 2 * j + 2]), is_first=j == 0) for j in (0, 1)
        ]
        assert [memory[0].activations, memory[1].activations - phase.logits_bytes] == held


def test_what_every_stage_holds_is_charged_on_each_once() -> None:
    plain = llama_graph(tied=False)
    angles = Parameter("model.angles.weight", (64, 16))
    graph = replace(plain, first=(*plain.first, angles), everywhere=(angles.name,))
    three = Cluster.load("3xCPU")
    ready = planned(program(graph=graph, cluster=three, precisions="16"))
    candidate = Candidate((0, 1, 2), 8, 8)
    problem = build_problem(ready, candidate, None)
    assignment = Assignment((0, 1, 1, 2), (0,) * 4)
    memory = make_plan(ready, candidate, problem, assignment, GUESS, None).prediction.memory
    assert [entry.embedding for entry in memory] == [graph.first_bytes, 2 * angles.size, 0]
    assert memory[2].head == graph.last_bytes(with_first=False)
    charged = [
        c.capacity_bytes - left + used
        for c, left, used in zip(three.devices, problem.capacity_bytes, evaluate(problem, assignment).bytes)
    ]
    assert [entry.total for entry in memory] == charged


def test_stages_follow_the_order_of_the_candidate_and_leave_unused_devices_out() -> None:
    ready = planned(program(cluster=two_cpus()))
    candidate = Candidate((1, 0), 8, 8)
    problem = build_problem(ready, candidate, None)
    both = make_plan(ready, candidate, problem, Assignment((0, 1, 1, 1), (0, 1, 1, 2)), GUESS, 0.5)
    assert [(stage.device, stage.first_layer, stage.options) for stage in both.stages] == [
        ("CPU:1", 0, ("16",)),
        ("CPU:0", 1, ("w8a16", "w8a16", "w4a16")),
    ]
    assert both.quality.budget == 0.5
    one = make_plan(ready, candidate, problem, Assignment((1,) * 4, (0,) * 4), GUESS, None)
    assert [stage.device for stage in one.stages] == ["CPU:0"]


def test_a_tied_head_is_counted_once_on_one_device_and_twice_on_two() -> None:
    ready = planned(program(graph=llama_graph(tied=True), cluster=two_cpus()))
    candidate = Candidate((0, 1), 8, 8)
    problem = build_problem(ready, candidate, None)
    embedding, norm = ready.graph.first_bytes, 2 * ready.graph.hidden_size
    one = make_plan(ready, candidate, problem, Assignment((0,) * 4, (0,) * 4), GUESS, None).prediction.memory
    assert [(memory.embedding, memory.head) for memory in one] == [(embedding, norm)]
    two = make_plan(ready, candidate, problem, Assignment((0, 0, 1, 1), (0,) * 4), GUESS, None).prediction.memory
    assert [(memory.embedding, memory.head) for memory in two] == [(embedding, 0), (0, embedding + norm)]


def test_only_the_last_stage_holds_logits_and_what_it_was_sent_as_well() -> None:
    ready = planned(program(cluster=two_cpus()))
    candidate = Candidate((0, 1), 8, 8)
    problem = build_problem(ready, candidate, None)
    first, last = make_plan(ready, candidate, problem, Assignment((0, 0, 1, 1), (0,) * 4), GUESS, None).prediction.memory
    phase = ready.require("costs").phase("prefill", 8)
    assert last.activations - first.activations == phase.logits_bytes + phase.hidden_bytes
    assert replace(first, device="", embedding=0, activations=0) == replace(last, device="", head=0, activations=0)
