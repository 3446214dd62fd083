"""The processes backend: forked stages equal one process, and 20 seeded faults after which nothing is lost and nothing left."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from llmpq.backends.local import LocalBackend
from llmpq.backends.processes import ProcessesBackend
from llmpq.errors import InputError, PeerError, StageLostError
from llmpq.generation import Generation, SamplingParams
from llmpq.plan import Plan
from llmpq.runtime.heartbeat import Lost, Patience
from llmpq.workload import Batch
from tests.toys import ToyStage, prompts_of, toy_graph, toy_plan, toy_stages

CUTS = (1, 2, 1)
FEW_SLOTS = Batch(4, 12, 12)
PROMPTS = prompts_of((5, 1, 9, 3, 12, 5, 7, 8, 2, 11, 4, 6))
QUICK = Patience(20, 0.5, 20)


def local() -> LocalBackend:
    return LocalBackend(toy_plan(CUTS, 1, 2, FEW_SLOTS), toy_graph(), toy_stages(CUTS).__getitem__)


def processes(
    recover: bool = False, on_notice: Callable[[str], None] | None = None, patience: Patience = QUICK
) -> ProcessesBackend:
    rest = (patience, on_other_devices if recover else None, on_notice)
    return ProcessesBackend(toy_plan(CUTS, 1, 2, FEW_SLOTS), toy_graph(), toy_stages(CUTS).__getitem__, None, *rest)


def on_other_devices(plan: Plan, device: str) -> tuple[Plan, Callable[[int], nn.Module]]:
    """Two stages instead of three."""
    assert device in [stage.device for stage in plan.stages]
    return toy_plan((2, 2), 1, 2, FEW_SLOTS), toy_stages((2, 2)).__getitem__


@pytest.fixture(scope="module")
def expected() -> list[Generation]:
    return local().generate(PROMPTS, SamplingParams(12))


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    return module


def test_a_process_per_stage_gives_what_one_process_gives(expected: list[Generation]) -> None:
    continuations = prompts_of((2, 0, 3, 1, 2, 5, 1, 1, 1, 1, 2, 2), seed=2)
    with processes(patience=Patience(20, 5, 20)) as backend:
        assert backend.generate(PROMPTS, SamplingParams(12)) == expected
        assert len(backend.start_up) == 3 and all(took.peak_bytes > 0 for took in backend.start_up)
        started = backend.pids
        assert backend.score(PROMPTS) == local().score(PROMPTS)
        assert backend.log_probs(PROMPTS, continuations) == local().log_probs(PROMPTS, continuations)
        stream = backend.stream(PROMPTS, SamplingParams(12))
        next(stream)
        assert backend.pids == started
        stream.close()  # type: ignore[attr-defined]
        assert backend.pids == ()  # nobody waits for the rest
        assert backend.generate(PROMPTS[:1], SamplingParams(12)) == expected[:1]


@pytest.mark.parametrize("seed", range(20))
def test_after_a_fault_nothing_is_lost_and_nothing_is_left(seed: int, faults: ModuleType, expected: list[Generation]) -> None:
    assert faults.run(faults.draw(seed), processes, PROMPTS, expected).problems == ()


def test_the_cases_are_of_all_kinds(faults: ModuleType) -> None:
    cases = [faults.draw(seed) for seed in range(20)]
    assert {(case.kind, case.recover) for case in cases} == {
        (kind, recover) for kind in ("kill", "hang", "slow") for recover in ((False, True) if kind != "slow" else (False,))
    }
    assert {case.stage for case in cases} == {0, 1, 2}


def test_a_stage_that_fails_is_named_with_what_it_said() -> None:
    def load_stage(index: int) -> ToyStage:
        if index == 1:
            raise RuntimeError("no space left, says the disk")
        return toy_stages(CUTS)[index]

    backend = ProcessesBackend(toy_plan(CUTS), toy_graph(), load_stage, patience=QUICK)
    with pytest.raises(StageLostError, match=r"lost stage 1 \(CPU:1 on host0\): .*no space left, says the disk"):
        backend.start()


def test_a_stage_that_lives_and_computes_for_ever_is_named() -> None:
    def load_stage(index: int) -> ToyStage:
        stage = toy_stages(CUTS)[index]
        if index == 1:
            stage.register_forward_pre_hook(lambda *_: signal.pause())
        return stage

    backend = ProcessesBackend(toy_plan(CUTS), toy_graph(), load_stage, patience=Patience(20, 2, 1.5))
    with pytest.raises(StageLostError, match=r"lost stage 1 \(CPU:1 on host0\): no answer for 1.5 s, though it lives"):
        backend.generate(PROMPTS, SamplingParams(2))


def test_a_stage_that_ended_because_it_lost_another_is_not_to_blame() -> None:
    """What it told may be read after its end is seen."""
    with processes(patience=Patience(20, 5, 20)) as backend:
        backend.start()
        stages = backend._stages
        assert stages is not None
        os.kill(backend.pids[2], signal.SIGKILL)
        for process in stages.processes[1:]:
            process.join(20)
        assert [process.exitcode for process in stages.processes] == [None, PeerError.exit_code, -signal.SIGKILL]
        assert stages._watch() == Lost(2, "ended")
        with pytest.raises(StageLostError, match=r"lost stage 2 .*killed by SIGKILL"):
            backend.generate(PROMPTS, SamplingParams(12))


def test_a_stage_that_is_lost_between_two_jobs_is_named_and_the_next_job_starts_anew(expected: list[Generation]) -> None:
    with processes() as backend:
        backend.start()
        os.kill(backend.pids[2], signal.SIGKILL)
        with pytest.raises(StageLostError, match=r"lost stage 2 .*killed by SIGKILL"):
            backend.generate(PROMPTS, SamplingParams(12))
        assert backend.generate(PROMPTS, SamplingParams(12)) == expected


def test_where_no_plan_is_left_the_error_says_why_and_what_there_is() -> None:
    def impossible(plan: Plan, device: str) -> tuple[Plan, Callable[[int], nn.Module]]:
        raise InputError("no device is left")

    def kill(sequence: int, token: int) -> None:
        if backend.pids:
            os.kill(backend.pids[0], signal.SIGKILL)

    plan = toy_plan(CUTS, 1, 2, FEW_SLOTS)
    backend = ProcessesBackend(plan, toy_graph(), toy_stages(CUTS).__getitem__, None, QUICK, impossible)
    with pytest.raises(StageLostError, match="cannot go on without CPU:0: no device is left") as lost:
        backend.generate(PROMPTS, SamplingParams(12), kill)
    assert sum(map(len, lost.value.generated)) >= 1
