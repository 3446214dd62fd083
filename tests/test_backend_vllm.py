"""Generation and scoring by a running vLLM, here a stand-in."""

from llmpq.backend import Backend
from llmpq.backends.vllm import VllmBackend
from llmpq.backends.vllm_server import VllmServer
from llmpq.generation import Generation, SamplingParams
from tests.test_vllm_server import server

__all__ = ["server"]  # a fixture


def test_every_prompt_is_continued_in_order_and_tokens_are_handed_on(server: VllmServer) -> None:
    seen: list[tuple[int, int]] = []
    with server:
        backend: Backend = VllmBackend(server)
        params = SamplingParams(2, eos_token_ids=(4,), log_probs=True)
        found = backend.generate([[7, 8], [9]], params, lambda sequence, token: seen.append((sequence, token)))
    assert found == [Generation((8, 4), "eos", (-0.5, -0.25)), Generation((9, 4), "eos", (-0.5, -0.25))]
    assert seen == [(0, 8), (0, 4), (1, 9), (1, 4)]


def test_a_sequence_that_meets_no_end_ends_by_its_length(server: VllmServer) -> None:
    with server:
        assert VllmBackend(server).generate([[7]], SamplingParams(1)) == [Generation((7,), "length")]
        assert VllmBackend(server).generate([], SamplingParams(1)) == []


def test_scores_are_of_every_token_but_the_first_and_continuations_of_their_own(server: VllmServer) -> None:
    with server:
        assert VllmBackend(server).score([[5, 1], [5, 2, 3]]) == [(-1.0,), (-2.0, -3.0)]
        assert VllmBackend(server).log_probs([[5, 1], [6]], [[2, 3], [4]]) == [(-2.0, -3.0), (-4.0,)]
