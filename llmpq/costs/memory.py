"""Memory of a stage in bytes: KV cache and activations (weights are in llmpq.graph)."""

from llmpq.graph import FLOAT_BYTES, LayerGraph, LayerKind
from llmpq.workload import Batch

MASK_BYTES = 1  # boolean attention mask
LOGIT_BYTES = 4  # log-probabilities and sampling work in fp32
RESIDUAL_COPIES = 4  # residual, its norm in fp32 (two units), the output of the part


def kv_cache_bytes(kind: LayerKind, workload: Batch, block_size: int | None = None) -> int:
    """Keys and values of every sequence at its final length, for one layer of this kind; allocated once.

    block_size: tokens of a block of an engine with paged attention, which keeps one block to itself.
    """
    if block_size is None:
        return kind.kv_bytes_per_token * workload.batch_size * workload.kv_len
    return kind.kv_bytes_per_token * paged_tokens(workload, block_size)


def paged_tokens(workload: Batch, block_size: int) -> int:
    """Tokens of cache for every sequence at its longest in whole blocks, and the block that a paged engine keeps free.

    A paged engine starts only with room for one sequence and its last token, whose keys and values nothing reads.
    """
    longest = -(-(workload.kv_len + 1) // block_size)
    return (max(workload.batch_size * -(-workload.kv_len // block_size), longest) + 1) * block_size


def activation_bytes(graph: LayerGraph, kind: LayerKind, rows: int, tokens: int, context: int) -> int:
    """Upper bound of the bytes alive at once inside one layer for `rows` sequences of `tokens` new tokens.

    The larger of attention (q, k, v, output, boolean mask; the score matrix is never whole) and mlp (all its linears'
    outputs), over the residual; plus the largest weight, unpacked to 16 bits while it is multiplied.
    """
    new = rows * tokens
    residual = RESIDUAL_COPIES * new * graph.hidden_size * FLOAT_BYTES
    attention = kind.attention
    heads = 2 * attention.num_heads + 2 * attention.num_kv_heads
    inside_attention = new * heads * attention.head_dim * FLOAT_BYTES + rows * tokens * context * MASK_BYTES
    inside_mlp = sum(
        new * linear.out_features * linear.active_experts * FLOAT_BYTES for linear in kind.linears if linear.part == "mlp"
    )
    unpacked = max(linear.in_features * linear.out_features for linear in kind.linears) * (FLOAT_BYTES + LOGIT_BYTES)
    return residual + max(inside_attention, inside_mlp) + unpacked


def logits_bytes(graph: LayerGraph, rows: int) -> int:
    """Logits of the last position of `rows` sequences in the compute dtype, and their fp32 log-probabilities."""
    return rows * graph.vocab_size * (FLOAT_BYTES + LOGIT_BYTES)
