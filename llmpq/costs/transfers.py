"""Transfers: how much of a token's state an engine sends from one stage to the next."""

from llmpq.graph import FLOAT_BYTES, LayerGraph

# vLLM adds the residual in the next layer's norm, so its stages send hidden state and residual; these models' do not
# (vLLM 0.32, make_empty_intermediate_tensors_factory in model_executor/models)
HIDDEN_STATE_ALONE = frozenset(
    (
        "BloomForCausalLM",
        "ChatGLMForCausalLM",
        "DbrxForCausalLM",
        "FalconForCausalLM",
        "FalconH1ForCausalLM",
        "GPT2LMHeadModel",
        "GPTJForCausalLM",
        "OPTForCausalLM",
        "OrionForCausalLM",
        "StableLmForCausalLM",
    )
)


def sent_bytes(graph: LayerGraph, engine: str) -> int:
    """Bytes of one token on a link between stages."""
    tensors = 2 if engine == "vllm" and graph.architecture not in HIDDEN_STATE_ALONE else 1
    return tensors * graph.hidden_size * FLOAT_BYTES
