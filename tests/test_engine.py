"""The engine: its order is the schedule that is printed, any order gives the same tokens, slots are used again."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.errors import BackendError
from llmpq.generation import SamplingParams
from llmpq.runtime.engine import Engine
from llmpq.runtime.job import Job, generate_job, score_job
from llmpq.runtime.progress import NewToken, Progress
from llmpq.runtime.schedule import schedule
from llmpq.runtime.scheduler import Pick, longest_waiting
from llmpq.runtime.spec import PipelineSpec, pipeline_spec
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import in_process_ring
from llmpq.runtime.worker import OnAction
from llmpq.workload import Batch
from tests.toys import WORKLOAD, prompts_of, reference_greedy, toy_graph, toy_plan, toy_stages

CUTS = (1, 3)
PROMPTS = prompts_of((5, 1, 9))
MANY = prompts_of((5, 1, 9, 3, 12, 5, 30, 2, 7, 4, 1))


def pipeline(workload: Batch = WORKLOAD) -> tuple[PipelineSpec, dict[int, Stage]]:
    spec = pipeline_spec(toy_plan(CUTS, 1, 2, workload), toy_graph())
    return spec, {j: Stage(module, spec.layers[j], spec.torch_dtype) for j, module in enumerate(toy_stages(CUTS))}


def run(
    job: Job, workload: Batch = WORKLOAD, pick: Pick = longest_waiting, on_action: OnAction | None = None
) -> tuple[Progress, list[NewToken]]:
    spec, stages = pipeline(workload)
    progress = Progress(job)
    return progress, list(Engine(spec, stages, in_process_ring(2), pick, on_action).run(progress))


def tokens_of(progress: Progress) -> list[list[int]]:
    return [list(generation.token_ids) for generation in progress.generations()]


def test_the_order_of_actions_is_the_printed_schedule() -> None:
    ran: list[list[str]] = [[], []]
    run(generate_job(PROMPTS, SamplingParams(3)), on_action=lambda stage, action, start, end: ran[stage].append(str(action)))
    printed = str(schedule(2, 3, 2, 3, 2))
    assert printed == "schedule: 2 P per D\n0: P0 P1 P2 D0 D1 D0 D1 .\n1: .  P0 P1 P2 D0 D1 D0 D1\n"
    assert ran == [[cell for cell in line.split()[1:] if cell != "."] for line in printed.splitlines()[1:]]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 6), st.booleans())
def test_whichever_micro_batch_goes_first_the_tokens_are_the_same(turns: list[int], batch_size: int, ends: bool) -> None:
    """Fewer slots than sequences, ends at different tokens, rows that move: in any order of turns."""
    places = iter(turns)

    def pick(micro_batches: Sequence[int]) -> int:
        return micro_batches[next(places, 0) % len(micro_batches)]

    full = [reference_greedy(prompt, 6) for prompt in MANY]
    eos = (full[2][3],) if ends else ()
    expected = [tokens[: tokens.index(eos[0]) + 1] if eos and eos[0] in tokens else tokens for tokens in full]
    progress, streamed = run(generate_job(MANY, SamplingParams(6, eos_token_ids=eos)), Batch(batch_size, 12, 25), pick)
    assert tokens_of(progress) == expected
    for index, tokens in enumerate(expected):
        assert [token for sequence, token, _ in streamed if sequence == index] == tokens


def test_a_prompt_takes_the_slot_of_a_sequence_that_ended_while_the_others_go_on() -> None:
    first = reference_greedy(MANY[1], 1)[0]  # ends the second sequence at once
    assert all(first not in reference_greedy(prompt, 5) for prompt in (MANY[0], MANY[3]))
    ran: list[str] = []
    job = generate_job([MANY[0], MANY[1], MANY[3]], SamplingParams(5, eos_token_ids=(first,)))
    progress, _ = run(job, Batch(2, 12, 8), on_action=lambda stage, action, *_: ran.append(str(action)) if stage == 0 else None)
    assert ran == ["P0", "P1", "D0", "P2", "D0", "D0", "D0", "D0"]
    assert [len(tokens) for tokens in tokens_of(progress)] == [5, 1, 5]


def test_rows_that_ended_are_computed_no_more() -> None:
    rows: Counter[int] = Counter()
    spec, stages = pipeline()
    stages[1].module.register_forward_pre_hook(lambda module, inputs: rows.update([len(inputs[0])]))
    eos = reference_greedy(PROMPTS[1], 1)[0]
    assert eos not in reference_greedy(PROMPTS[0], 4)
    list(
        Engine(spec, stages, in_process_ring(2)).run(Progress(generate_job(PROMPTS[:2], SamplingParams(4, eos_token_ids=(eos,)))))
    )
    assert rows == {1: 2 + 3}  # two prefills of one prompt each, then the first sequence alone


def test_the_cache_is_allocated_once_for_all_jobs() -> None:
    spec, stages = pipeline()
    engine = Engine(spec, stages, in_process_ring(2))
    per_position = 3 * toy_graph().kind_of(0).kv_bytes_per_token * 2  # fp32: twice 16 bits
    places = set()
    for lengths, new, positions in (((12,) * 8, 8, 8 * 19), ((5, 1, 9), 4, 3 * 12), ((40, 3), 2, 1 * 41)):
        list(engine.run(Progress(generate_job(prompts_of(lengths), SamplingParams(new)))))
        assert stages[1].cache_bytes == positions * per_position
        assert stages[1]._cache is not None
        places.add(stages[1]._cache.slots(1, 0, 1)[0].tensors[0].data_ptr())
    assert len(places) == 1
    list(engine.run(Progress(score_job(PROMPTS))))
    assert stages[1].cache_bytes == 0


def test_an_iterator_that_is_closed_ends_the_job_and_the_next_one_runs() -> None:
    spec, stages = pipeline()
    engine = Engine(spec, stages, in_process_ring(2))
    job = generate_job(PROMPTS, SamplingParams(5))
    stream = engine.run(Progress(job))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    progress = Progress(job)
    list(engine.run(progress))
    assert tokens_of(progress) == [reference_greedy(prompt, 5) for prompt in PROMPTS]


def test_a_job_goes_on_where_an_earlier_one_was_interrupted() -> None:
    params = SamplingParams(6, temperature=1.0, seed=5)
    whole, _ = run(generate_job(MANY, params))
    generated = tuple(tuple(tokens[: index % 7]) for index, tokens in enumerate(tokens_of(whole)))
    job = Job("generate", tuple(map(tuple, MANY)), params, generated=generated)
    again, streamed = run(job)
    assert tokens_of(again) == tokens_of(whole)
    assert len(streamed) == sum(6 - index % 7 for index in range(len(MANY)))


def test_a_stage_that_fails_ends_the_job() -> None:
    spec, stages = pipeline()

    def fail(module: torch.nn.Module, inputs: object) -> None:
        raise BackendError("the stage says no")

    hook = stages[1].module.register_forward_pre_hook(fail)
    engine = Engine(spec, stages, in_process_ring(2))
    with pytest.raises(BackendError, match="says no"):
        list(engine.run(Progress(generate_job(PROMPTS, SamplingParams(3)))))
    hook.remove()
    progress = Progress(generate_job(PROMPTS, SamplingParams(3)))
    list(engine.run(progress))
    assert tokens_of(progress) == [reference_greedy(prompt, 3) for prompt in PROMPTS]


def test_actions_carry_their_times() -> None:
    clock = iter(range(1000))
    spec, stages = pipeline()
    seen: list[tuple[int, Action, float, float]] = []
    engine = Engine(spec, stages, in_process_ring(2), on_action=lambda *what: seen.append(what), clock=lambda: float(next(clock)))
    list(engine.run(Progress(generate_job(PROMPTS[:1], SamplingParams(2)))))
    assert seen == [
        (0, Action("P", 0), 0.0, 1.0),
        (1, Action("P", 0), 2.0, 3.0),
        (0, Action("D", 0), 4.0, 5.0),
        (1, Action("D", 0), 6.0, 7.0),
    ]
