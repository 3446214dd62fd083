"""Left-padded micro-batches, and how jobs are cut into batches."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpq.errors import InputError
from llmpq.generation import SamplingParams
from llmpq.runtime.batching import Rows, make_batch
from llmpq.runtime.job import Job, decode, encode, force_job, generate_job, score_job
from llmpq.runtime.spec import PipelineSpec, cut, pipeline_spec, unsupported, validate
from llmpq.workload import Batch
from tests.toys import toy_graph, toy_plan

ROWS = Rows((4, 5), (3, 1), 3)


def spec() -> PipelineSpec:
    return pipeline_spec(toy_plan((2, 2)), toy_graph())


def job_of(lengths: list[int], new_tokens: int) -> Job:
    return generate_job([[1] * length for length in lengths], SamplingParams(new_tokens))


def test_shorter_sequences_are_padded_on_the_left() -> None:
    sequences = [[], [], [], [], [7, 8, 9], [5]]
    assert ROWS.input_ids(sequences).tolist() == [[7, 8, 9], [0, 0, 5]]


def test_the_mask_covers_past_and_new_positions() -> None:
    mask = ROWS.attention_mask(4)
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_rows_of_equal_length_need_no_mask() -> None:
    assert Rows((0, 1), (3, 3), 3).attention_mask(5) is None
    assert ROWS.slice(0, 1).attention_mask(3) is None
    assert Rows((0,), (2,), 3).attention_mask(3) is not None


def test_positions_count_from_the_first_real_token() -> None:
    assert ROWS.position_ids(0, 3).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert ROWS.position_ids(3, 1).tolist() == [[3], [1]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=13), st.integers(1, 4), st.integers(1, 3))
def test_each_sequence_is_prefilled_and_decoded_once(lengths: list[int], prefill: int, share: int) -> None:
    batch = make_batch(lengths, 10, prefill, prefill * share, 3)
    expected = list(enumerate(lengths, 10))
    parts = [batch.prefill_rows(index) for index in range(len(batch.prefill))]
    for rows in (batch.decode, parts):
        assert [pair for part in rows for pair in zip(part.sequences, part.lengths)] == expected
    assert all(len(part) <= prefill for part in parts)
    for index, part in enumerate(batch.prefill):
        assert part.owner == index // batch.prefill_per_decode
        assert parts[index].padded_len == max(batch.decode[part.owner].lengths)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 30))
def test_batches_hold_every_sequence_within_the_planned_sequences_and_cache(lengths: list[int], new_tokens: int) -> None:
    limits = spec()
    batches = list(cut(job_of(lengths, new_tokens), limits))
    assert [sequence for batch in batches for rows in batch.decode for sequence in rows.sequences] == list(range(len(lengths)))
    for batch in batches:
        assert sum(len(rows) for rows in batch.decode) <= limits.workload.batch_size
        reserved = sum(len(rows) * batch.cache_len(index) for index, rows in enumerate(batch.decode))
        assert len(lengths) == 1 or reserved <= limits.cache_positions


def test_prompts_longer_than_planned_are_prefilled_fewer_at_a_time() -> None:
    limits = replace(spec(), prefill_micro_batch=4, decode_micro_batch=4)
    sizes = {length: len(next(cut(job_of([length] * 4, 2), limits)).prefill_rows(0)) for length in (12, 13, 24, 25)}
    assert sizes == {12: 4, 13: 2, 24: 2, 25: 1}


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
    for job in (job_of([2, 3], 4), force_job([[1, 2]], [[3]]), score_job([[4, 5]])):
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
    fp8 = replace(plan, pipelines=(replace(plan.pipeline, stages=(replace(stage, options=("fp8",) * 4),)),))
    assert unsupported(fp8) == ["option fp8 is not one of 16, w8a8, w8a16, w4a16, w3a16"]
