"""Seconds of a plan's stages and links: those that its assignment problem charges."""

from dataclasses import replace

import pytest

from llmpq.answers.subject import Subject
from llmpq.costs.point import Point, Timing
from llmpq.costs.profile import Machine, Profile, by_device, ends_digest, kind_digest
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import SERVED_TOKENS
from llmpq.planning.stage_seconds import stage_seconds
from llmpq.program import Program
from llmpq.solver.problem import phase_times
from llmpq.workload import Batch, Serving, Workload
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


def shared_host() -> Profile:
    """Beside another process everything takes twice as long."""
    alone = profile()
    return replace(alone, beside=tuple(point.scaled(2.0) for point in alone.points))


def planned(workload: Workload, measured: Profile | None) -> Program:
    plain = program(GRAPH, two_cpus("1300 KiB", "1300 KiB"))
    return run_passes(
        replace(plain, request=replace(plain.request, workload=workload, profile=measured)), parse_pipeline(PIPELINE)
    )


@pytest.mark.parametrize("measured", [None, profile(), shared_host()], ids=["modelled", "profiled", "profiled beside"])
def test_a_plan_of_a_batch_has_the_seconds_of_its_problem(measured: Profile | None) -> None:
    made = planned(WORKLOAD, measured)
    subject = Subject.of(made)
    found = stage_seconds(subject.plan, GRAPH, measured)
    assert len(subject.plan.stages) == 2
    for phase, (stages, links) in (
        ("prefill", (found.prefill, found.prefill_link)),
        ("decode", (found.decode, found.decode_link)),
    ):
        charged = zip(*phase_times(subject.problem, subject.assignment, phase))  # type: ignore[arg-type]
        assert [sum(pair) for pair in zip(stages, links)] == pytest.approx([sum(pair) for pair in charged])
        # what a stage does beside its layers, a second or more by its speed, is its own here, and with its link in the problem
        assert (stages[0] > 1.0) == (measured is not None)
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


@pytest.mark.parametrize("rows", [1, 4])
def test_stages_that_are_at_work_at_once_go_by_what_was_measured_beside_another(rows: int) -> None:
    """A batch of one micro-batch is computed by one stage after the other."""
    made = planned(Batch(4, 16, 8), shared_host()).require("plan")
    (whole,) = made.pipelines
    plan = replace(made, pipelines=(replace(whole, prefill_micro_batch=rows, decode_micro_batch=rows),))
    alone, beside = (stage_seconds(plan, GRAPH, given) for given in (profile(), shared_host()))
    times = 1.0 if rows == 4 else 2.0
    assert beside.decode == pytest.approx([times * seconds for seconds in alone.decode])
    assert beside.prefill == pytest.approx([times * seconds for seconds in alone.prefill])


def test_a_device_with_a_host_of_its_own_is_slowed_by_none() -> None:
    here, there = two_cpus().devices
    measured = shared_host()
    pair = (here, replace(there, host="another"))
    assert by_device(measured, pair, pair, at_once=True) == (measured.alone,) * 2
    assert by_device(measured, (here,), (here, there), at_once=True) == (measured.busy,)
    assert by_device(measured, (here,), (here, there), at_once=False) == (measured.alone,)
    assert by_device(profile(), (here,), (here, there), at_once=True) == (profile(),)
