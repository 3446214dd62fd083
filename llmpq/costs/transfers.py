"""Transfers: what engines send from one stage to the next for each token, and from the last to the first."""

from llmpq.graph import FLOAT_BYTES, LayerGraph

TOKEN_BYTES = 8  # of a sampled token, whose id returns to the first stage as int64

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
