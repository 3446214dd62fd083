"""The engine interprets the schedule that is printed, and refuses one that cannot work."""

import pytest

from llmpq.errors import BackendError
from llmpq.generation import SamplingParams
from llmpq.runtime.engine import Engine, batch_schedule, interpret
from llmpq.runtime.job import Job, generate_job
from llmpq.runtime.progress import Progress
from llmpq.runtime.schedule import parse_schedule
from llmpq.runtime.spec import PipelineSpec, cut, pipeline_spec
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import InProcessTransport, Message, in_process_ring
from llmpq.runtime.worker import Worker
from tests.toys import prompts_of, reference_greedy, toy_graph, toy_plan, toy_stages

CUTS = (1, 3)
PROMPTS = prompts_of((5, 1, 9))


def pipeline() -> tuple[PipelineSpec, dict[int, Stage]]:
    spec = pipeline_spec(toy_plan(CUTS, 1, 2), toy_graph())
    return spec, {j: Stage(module, spec.layers[j], spec.torch_dtype) for j, module in enumerate(toy_stages(CUTS))}


def workers_of(job: Job, progress: Progress) -> dict[int, Worker]:
    spec, stages = pipeline()
    (batch,) = cut(job, spec)
    ring = in_process_ring(len(CUTS))
    return {j: Worker(stages[j], ring[j], job, batch, None if j else progress, j == len(CUTS) - 1) for j in stages}


def test_the_printed_schedule_of_a_batch_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = [[], []]
    run = Worker.run

    def record(worker: Worker, action: Action) -> None:
        ran[worker.is_last].append(str(action))
        run(worker, action)

    monkeypatch.setattr(Worker, "run", record)
    spec, stages = pipeline()
    job = generate_job(PROMPTS, SamplingParams(3))
    Engine(spec, stages, in_process_ring(2)).run(job)
    printed = str(batch_schedule(next(cut(job, spec)), 2))
    assert printed == "schedule: 2 P per D\n0: P0 P1 P2 D0 D1 D0 D1 .\n1: .  P0 P1 P2 D0 D1 D0 D1\n"
    assert ran == [[cell for cell in line.split()[1:] if cell != "."] for line in printed.splitlines()[1:]]


def test_another_valid_schedule_gives_the_same_tokens() -> None:
    progress = Progress(generate_job(PROMPTS, SamplingParams(3)))
    eager = "schedule: 2 P per D\n0: P2 .  D1 .  D1 P0 P1 .  D0 .  D0 .\n1: .  P2 .  D1 .  D1 P0 P1 .  D0 .  D0\n"
    interpret(parse_schedule(eager), workers_of(progress.job, progress))
    assert [list(generation.token_ids) for generation in progress.generations()] == [reference_greedy(p, 3) for p in PROMPTS]


def test_the_end_of_a_micro_batch_is_told_to_each_later_stage_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []
    send = InProcessTransport.send

    def record(place: InProcessTransport, message: Message) -> None:
        ends.extend([str(message.action)] if message.payload is None else [])
        send(place, message)

    monkeypatch.setattr(InProcessTransport, "send", record)
    first = reference_greedy(PROMPTS[2], 1)[0]  # ends the second decode micro-batch, PROMPTS[2] alone, and no other
    spec, stages = pipeline()
    params = SamplingParams(6, eos_token_ids=(first,))
    generations = Engine(spec, stages, in_process_ring(2)).run(generate_job(PROMPTS, params)).generations()
    assert [len(generation.token_ids) for generation in generations] == [6, 6, 1]
    assert ends == ["D1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: P0 P1 D0\n1: .  P0 P1\n", "reads a message that was not sent in an earlier slot"),
        ("0: P0 P1 .\n1: .  P1 P0\n", "received P0 where its schedule has P1"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_and_does_not_hang(text: str, message: str) -> None:
    progress = Progress(generate_job(PROMPTS, SamplingParams(3)))
    with pytest.raises(BackendError, match=message):
        interpret(parse_schedule("schedule: 2 P per D\n" + text), workers_of(progress.job, progress))


def test_caches_take_exactly_the_positions_of_the_batch() -> None:
    spec, stages = pipeline()
    (batch,) = cut(generate_job(PROMPTS, SamplingParams(4)), spec)
    stages[1].begin(batch, keeps_cache=True)
    positions = 2 * (5 + 4 - 1) + 1 * (9 + 4 - 1)
    assert stages[1].cache_bytes == positions * 3 * toy_graph().kind_of(0).kv_bytes_per_token * 2  # fp32: twice 16 bits
    stages[1].begin(batch, keeps_cache=False)
    assert stages[1].cache_bytes == 0
