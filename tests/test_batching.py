"""Steps and their inputs, and how jobs get their slots."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.generation import SamplingParams
from llmpq.runtime.batching import Row, Step, padded_ids
from llmpq.runtime.job import Job, decode, encode, force_job, generate_job, score_job
from llmpq.runtime.spec import PipelineSpec, arrangements, pipeline_spec, unsupported, validate
from llmpq.runtime.timeline import Action
from llmpq.workload import Batch
from tests.toys import toy_graph, toy_plan

PREFILL = Step(Action("P", 0), 2, (Row(2, 4, 3), Row(3, 5, 1)))
DECODE = Step(Action("D", 1), 2, (Row(2, 4, 4), Row(7, 6, 2)))


def spec() -> PipelineSpec:
    return pipeline_spec(toy_plan((2, 2)), toy_graph())


def job_of(lengths: list[int], new_tokens: int) -> Job:
    return generate_job([[1] * length for length in lengths], SamplingParams(new_tokens))


def test_shorter_prompts_are_padded_on_the_left() -> None:
    assert padded_ids([[7, 8, 9], [5]]).tolist() == [[7, 8, 9], [0, 0, 5]]


def test_the_mask_says_which_positions_are_real() -> None:
    masks = [step.attention_mask() for step in (PREFILL, DECODE)]
    assert [mask.tolist() for mask in masks if mask is not None] == [[[1, 1, 1], [0, 0, 1]], [[1, 1, 1, 1], [1, 1, 0, 0]]]


def test_rows_of_equal_length_need_no_mask() -> None:
    assert Step(Action("P", 0), 0, (Row(0, 0, 3), Row(1, 1, 3))).attention_mask() is None
    assert replace(DECODE, rows=DECODE.rows[:1]).attention_mask() is None


def test_positions_count_from_the_first_real_token() -> None:
    assert PREFILL.position_ids().tolist() == [[0, 1, 2], [0, 0, 0]]
    assert DECODE.position_ids().tolist() == [[3], [1]]


def test_a_row_found_elsewhere_moves_with_the_positions_that_it_had() -> None:
    assert DECODE.moves == ((7, 3, 1),)


@given(st.lists(st.integers(1, 20), max_size=20), st.integers(1, 30))
def test_slots_hold_every_sequence_within_the_planned_sequences_and_cache(lengths: list[int], new_tokens: int) -> None:
    limits, job = spec(), job_of(lengths, new_tokens)
    found = arrangements(job, limits)
    assert sorted(sequence for part in found for sequence in part.sequences) == list(range(len(lengths)))
    for part in found:
        assert 1 <= part.slots <= min(limits.workload.batch_size, len(part.sequences))
        assert part.slot_len == max(job.positions(sequence) for sequence in part.sequences)
        assert part.slots * part.slot_len <= limits.cache_positions


def test_sequences_longer_than_planned_come_last_so_that_the_others_keep_their_slots() -> None:
    first, then = arrangements(job_of([12, 40, 3, 12], 8), spec())
    assert (first.sequences, first.slots, first.slot_len) == ((0, 2, 3), 3, 19)
    assert (then.sequences, then.slots, then.slot_len) == ((1,), 1, 47)


def test_sequences_that_an_earlier_run_has_ended_get_no_slots() -> None:
    job = replace(job_of([3, 3, 3], 4), generated=((1, 2, 3, 4), (1,), ()))
    assert [part.sequences for part in arrangements(job, spec())] == [(1, 2)]
    assert job.prompt(1) == (1, 1, 1, 1)
    assert job.positions(1) == 3 + 4 - 1


def test_prompts_longer_than_planned_are_prefilled_fewer_at_a_time() -> None:
    limits = replace(spec(), prefill_micro_batch=4, decode_micro_batch=4)
    assert {length: limits.prefilled_at_once(length) for length in (1, 12, 13, 24, 25, 60)} == {
        1: 4,
        12: 4,
        13: 3,
        24: 2,
        25: 1,
        60: 1,
    }


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (generate_job([[1], []], SamplingParams(1)), "sequence 1 is empty"),
        (generate_job([[1, 61]], SamplingParams(1)), "sequence 0 holds token 61; the model knows 0 to 60"),
        (force_job([[1]], [[2, -1]]), "sequence 0 holds token -1"),
        (job_of([60], 6), "sequence 0 needs 65 positions; the model has 64"),
        (score_job([[1] * 65]), "sequence 0 needs 65 positions; the model has 64"),
    ],
)
def test_sequences_that_the_model_cannot_take_are_named(job: Job, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(job, spec())


def test_a_sequence_larger_than_the_planned_cache_is_refused_but_may_be_scored() -> None:
    small = replace(spec(), workload=Batch(1, 12, 8))
    with pytest.raises(InputError, match="needs 20 positions of KV cache; the plan reserved 19"):
        validate(job_of([12], 9), small)
    validate(job_of([12], 8), small)
    validate(score_job([[1] * 40]), small)


def test_a_job_survives_its_text_form() -> None:
    for job in (job_of([2, 3], 4), force_job([[1, 2]], [[3]]), score_job([[4, 5]]), replace(job_of([2], 4), generated=((7,),))):
        assert decode(encode(job)) == job


def test_continuations_must_match_prompts() -> None:
    with pytest.raises(InputError, match="1 continuations were given for 2 prompts"):
        force_job([[1], [2]], [[3]])


def test_plans_that_the_runtime_cannot_run_are_explained() -> None:
    plan = toy_plan((2, 2))
    assert unsupported(plan) == []
    assert unsupported(replace(plan, pipelines=plan.pipelines * 2)) == ["the plan has 2 pipelines; this runtime runs one"]
    assert "3 sequences does not divide a decode micro-batch of 4" in unsupported(toy_plan((4,), 3, 4))[0]
    assert "holds no sequence" in unsupported(toy_plan((4,), 0, 4))[0]
    (stage,) = toy_plan((4,)).stages
    later = replace(plan, pipelines=(replace(plan.pipeline, stages=(replace(stage, options=("nvfp4",) * 4),)),))
    assert unsupported(later) == ["option nvfp4 is not one of 16, w8a8, w8a16, w4a16, w3a16, fp8"]
