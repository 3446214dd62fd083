"""Transfers: what an engine's stages send of a token."""

from dataclasses import replace

import pytest

from llmpq.costs.transfers import sent_bytes
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.joint import costed
from llmpq.sensitivity import prior
from tests.values import llama_graph, program


@pytest.mark.parametrize(
    ("architecture", "engine", "tensors"),
    [
        ("LlamaForCausalLM", "local", 1),
        ("LlamaForCausalLM", "vllm", 2),
        ("OPTForCausalLM", "vllm", 1),
        ("OPTForCausalLM", "local", 1),
    ],
)
def test_vllm_sends_the_residual_too_where_the_next_norm_adds_it(architecture: str, engine: str, tensors: int) -> None:
    assert sent_bytes(replace(llama_graph(hidden=128), architecture=architecture), engine) == tensors * 128 * 2


def test_links_of_plans_for_vllm_carry_both() -> None:
    def forward_s(engine: str) -> float:
        plain = program()
        asked = costed(replace(plain, request=replace(plain.request, engine=engine)))
        ready = replace(asked, sensitivity=prior(asked.graph, asked.request.precisions))
        return build_problem(ready, Candidate((0, 1), 4, 4), None).link_prefill_s[0][1]

    latency_s, beta = 100e-6, 1 / 2e9
    one = 4 * 64 * 128 * 2
    assert forward_s("local") == pytest.approx(latency_s + one * beta)
    assert forward_s("vllm") == pytest.approx(latency_s + 2 * one * beta)
