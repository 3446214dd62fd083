"""The local backend against slow references: whatever the split, the micro-batches and the company, the same tokens."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpq.backend import BACKENDS, load_backend
from llmpq.backends.local import LocalBackend
from llmpq.errors import BackendError, InputError
from llmpq.generation import SamplingParams
from llmpq.workload import Batch
from tests.toys import WORKLOAD, prompts_of, reference_forced, reference_greedy, toy_graph, toy_plan, toy_stages

LENGTHS = (5, 1, 9, 3, 12, 5)
SPLITS = [(4,), (1, 3), (2, 2), (1, 2, 1), (1, 1, 1, 1)]
SEEDED = SamplingParams(7, temperature=1.0, top_k=20, top_p=0.95, seed=11)


def backend(cuts: Sequence[int] = (2, 2), prefill: int = 2, decode: int = 4, workload: Batch = WORKLOAD) -> LocalBackend:
    return LocalBackend(toy_plan(cuts, prefill, decode, workload), toy_graph(), toy_stages(cuts).__getitem__)


def tokens_of(made: LocalBackend, prompts: list[list[int]], params: SamplingParams) -> list[tuple[int, ...]]:
    return [generation.token_ids for generation in made.generate(prompts, params)]


@pytest.mark.parametrize("cuts", SPLITS)
def test_greedy_tokens_equal_the_unsplit_model_without_cache_or_padding(cuts: tuple[int, ...]) -> None:
    prompts = prompts_of(LENGTHS)
    expected = [tuple(reference_greedy(prompt, 7)) for prompt in prompts]
    assert tokens_of(backend(cuts), prompts, SamplingParams(7)) == expected


@pytest.mark.parametrize("cuts", SPLITS)
def test_forced_log_probs_equal_one_pass_over_the_whole_sequence(cuts: tuple[int, ...]) -> None:
    prompts, continuations = prompts_of(LENGTHS), prompts_of((4, 7, 0, 1, 6, 2), seed=2)
    got = backend(cuts).log_probs(prompts, continuations)
    for prompt, continuation, values in zip(prompts, continuations, got):
        assert values == pytest.approx(reference_forced(prompt, continuation), abs=1e-5)


@pytest.mark.parametrize("cuts", SPLITS)
def test_scores_of_whole_sequences_equal_one_pass_each(cuts: tuple[int, ...]) -> None:
    sequences = prompts_of((6, 1, 12, 30, 2), seed=3)
    for sequence, values in zip(sequences, backend(cuts).score(sequences)):
        assert values == pytest.approx(reference_forced(sequence[:1], sequence[1:]), abs=1e-5)


def test_log_probs_of_generated_tokens_are_those_of_the_model() -> None:
    prompts = prompts_of(LENGTHS)
    params = SamplingParams(5, temperature=1.0, seed=2, log_probs=True)
    for prompt, generation in zip(prompts, backend().generate(prompts, params)):
        assert generation.log_probs == pytest.approx(reference_forced(prompt, generation.token_ids), abs=1e-5)


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(SPLITS), st.integers(1, 3), st.integers(1, 3), st.integers(1, 8), st.sampled_from([SamplingParams(7), SEEDED])
)
def test_neither_the_split_nor_any_micro_batch_size_changes_a_token(
    cuts: tuple[int, ...], prefill: int, share: int, batch_size: int, params: SamplingParams
) -> None:
    prompts = prompts_of(LENGTHS)
    alone = [tokens_of(backend((4,), 1, 1), [prompt], params)[0] for prompt in prompts] if params.temperature == 0 else None
    expected = alone or tokens_of(backend((4,), 8, 8), prompts, params)
    assert tokens_of(backend(cuts, prefill, prefill * share, Batch(batch_size, 12, 8)), prompts, params) == expected


def test_seeds_change_the_tokens_and_a_seed_repeats_them() -> None:
    prompts = prompts_of(LENGTHS)
    one, again = tokens_of(backend(), prompts, SEEDED), tokens_of(backend(), prompts, SEEDED)
    other = tokens_of(backend(), prompts, SamplingParams(7, temperature=1.0, top_k=20, top_p=0.95, seed=12))
    assert one == again
    assert one != other


def test_equal_prompts_draw_different_tokens() -> None:
    same = [prompts_of((5,))[0]] * 3
    assert len(set(tokens_of(backend(), same, SamplingParams(7, temperature=1.5)))) == 3


def test_an_end_token_ends_its_sequence_and_only_that() -> None:
    prompts = prompts_of(LENGTHS)
    full = [reference_greedy(prompt, 7) for prompt in prompts]
    eos = full[2][3]
    expected = [tuple(tokens[: tokens.index(eos) + 1] if eos in tokens else tokens) for tokens in full]
    got = backend((1, 2, 1), 1, 2).generate(prompts, SamplingParams(7, eos_token_ids=(eos,)))
    assert [generation.token_ids for generation in got] == expected
    assert [generation.finish_reason for generation in got] == ["eos" if eos in tokens else "length" for tokens in full]
    assert {generation.finish_reason for generation in got} == {"eos", "length"}


def test_a_micro_batch_whose_sequences_have_all_ended_is_computed_no_more() -> None:
    calls = 0

    def count(module: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal calls
        calls += 1

    cuts = (1, 2, 1)
    stages = toy_stages(cuts)
    for stage in stages:
        stage.register_forward_hook(count)
    made = LocalBackend(toy_plan(cuts, 2, 2), toy_graph(), stages.__getitem__)
    prompt = prompts_of((5,))[0]
    first = reference_greedy(prompt, 1)[0]
    generations = made.generate([prompt] * 4, SamplingParams(7, eos_token_ids=(first,)))
    assert {generation.token_ids for generation in generations} == {(first,)}
    assert calls == 2 * len(cuts)


def test_tokens_stream_in_order_and_are_those_returned() -> None:
    prompts, seen = prompts_of(LENGTHS), []
    got = backend((1, 3), 1, 2).generate(prompts, SamplingParams(4), on_token=lambda *token: seen.append(token))
    for index, generation in enumerate(got):
        assert tuple(token for sequence, token in seen if sequence == index) == generation.token_ids
    rounds = [[sequence for sequence, _ in seen[start : start + 6]] for start in range(0, len(seen), 6)]
    assert rounds == [list(range(6))] * 4


def test_more_prompts_than_the_plan_holds_run_in_successive_batches() -> None:
    prompts = prompts_of([3 + index % 5 for index in range(11)])
    expected = [tuple(reference_greedy(prompt, 3)) for prompt in prompts]
    assert tokens_of(backend((2, 2), 2, 4, Batch(4, 12, 8)), prompts, SamplingParams(3)) == expected


def test_no_prompts_give_no_generations() -> None:
    assert backend().generate([], SamplingParams(3)) == []
    assert backend().score([]) == []


def test_a_backend_can_be_used_again() -> None:
    made, prompts = backend(), prompts_of(LENGTHS)
    first = tokens_of(made, prompts, SamplingParams(5))
    made.score(prompts)
    assert tokens_of(made, prompts, SamplingParams(5)) == first


def test_bad_sequences_are_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="sequence 1 holds token 99"):
        backend().generate([[1], [99]], SamplingParams(1))


def test_a_plan_it_does_not_support_is_refused_with_the_reasons() -> None:
    with pytest.raises(BackendError, match="backend local cannot run this plan: a prefill micro-batch of 3 sequences"):
        backend((4,), 3, 4)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_registered_backend_says_what_it_cannot_run(name: str) -> None:
    made = load_backend(name)
    assert made.name == name
    assert made.unsupported(toy_plan((2, 2))) == []
    assert made.unsupported(toy_plan((4,), 3, 4))


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="backend 'spark' is unknown; known are local, distributed"):
        load_backend("spark")
