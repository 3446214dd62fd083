"""Random Llamas of the benchmarks, by name: 16 layers of hidden size 2048, without an end of text."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig

SMALL = "random-2048x16"  # 788 million parameters, weights on disk
LARGE = "random-2048x16-32k"  # 852 million: four queries share a key, a larger vocabulary
_OWN: dict[str, dict[str, int]] = {
    SMALL: {"num_key_value_heads": 16, "vocab_size": 8192, "max_position_embeddings": 1024},
    LARGE: {"num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 2048},
}


def random_llama(name: str) -> "LlamaConfig":
    """In bfloat16, the head apart from the embedding."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=16,
        num_attention_heads=32,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        dtype="bfloat16",
        **_OWN[name],
    )
