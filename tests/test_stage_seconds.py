"""Seconds of a plan's stages and links: those that its assignment problem charges."""

from dataclasses import replace

import pytest

from llmpq.answers.subject import Subject
from llmpq.costs.point import Point, Timing
from llmpq.costs.profile import Machine, Profile, ends_digest, kind_digest
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import SERVED_TOKENS
from llmpq.planning.stage_seconds import stage_seconds
from llmpq.program import Program
from llmpq.solver.problem import phase_times
from llmpq.workload import Serving, Workload
from tests.values import WORKLOAD, llama_graph, program, two_cpus

GRAPH = llama_graph()
PIPELINE = "derive-costs,estimate-sensitivity{indicator=prior},assign-joint"


def profile() -> Profile:
    """A layer takes 1 us a new token and position; of every step half a second goes to messages and a second beside."""

    def at(seconds: float) -> Timing:
        return Timing(seconds, seconds, seconds)

    points = tuple(
        Point(name, rows, tokens, context, (at(1e-6 * rows * context),), at(3e-6 * rows), at(5e-6 * rows), rank=at(1.0))
        for name in ("16", "w8a16", "w4a16")
        for rows in (1, 4, 16)
        for tokens, context in ((16, 16), (64, 64), (256, 256), (1, 32), (1, 128), (1, 512))
    )
    machine = Machine("Linux", "a processor", 2, 1, (("torch", "2"),))
    digests = (kind_digest(GRAPH.kinds[0]),), ends_digest(GRAPH)
    return Profile("CPU", 1.0, "bfloat16", "tiny", *digests, machine, points, message_cpu_s=0.5)


def planned(workload: Workload, measured: Profile | None) -> Program:
    plain = program(GRAPH, two_cpus("1300 KiB", "1300 KiB"))
    return run_passes(
        replace(plain, request=replace(plain.request, workload=workload, profile=measured)), parse_pipeline(PIPELINE)
    )


@pytest.mark.parametrize("measured", [None, profile()], ids=["modelled", "profiled"])
def test_a_plan_of_a_batch_has_the_seconds_of_its_problem(measured: Profile | None) -> None:
    made = planned(WORKLOAD, measured)
    subject = Subject.of(made)
    found = stage_seconds(subject.plan, GRAPH, measured)
    assert len(subject.plan.stages) == 2
    for phase, ours in (("prefill", (found.prefill, found.prefill_link)), ("decode", (found.decode, found.decode_link))):
        charged = phase_times(subject.problem, subject.assignment, phase)  # type: ignore[arg-type]
        first = subject.plan.cluster.device(subject.plan.stages[0].device)
        beside = (1.0 / first.speed if measured else 0.0, 0.0)  # which the problem has with the link
        assert list(ours[0]) == pytest.approx([seconds + own for seconds, own in zip(charged[0], beside)])
        assert list(ours[1]) == pytest.approx([seconds - own for seconds, own in zip(charged[1], beside)])
    assert (min(found.decode_link) > 1.0) == (measured is not None)  # two devices of half and a quarter of the speed


def test_a_plan_for_serving_has_the_seconds_of_its_problem() -> None:
    subject = Subject.of(planned(Serving(1.0, 32, 16), None))
    found, load = stage_seconds(subject.plan, GRAPH), subject.plan.load
    stages, links = phase_times(subject.problem, subject.assignment, "decode")
    scale = load.running / SERVED_TOKENS
    assert list(found.decode) == pytest.approx([scale * seconds for seconds in stages])
    assert list(found.decode_link) == pytest.approx([scale * seconds for seconds in links])


def test_a_profile_in_another_compute_dtype_is_not_asked() -> None:
    plan = planned(WORKLOAD, None).require("plan")
    assert stage_seconds(plan, GRAPH, replace(profile(), compute_dtype="float16")) == stage_seconds(plan, GRAPH)
    assert stage_seconds(plan, GRAPH, profile()) != stage_seconds(plan, GRAPH)
