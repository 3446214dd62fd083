"""Operators of a Llama layer and of its ends, put together by hand as the tracer reports them."""

from llmpq.op_graph import Heads, Op, OpGraph, Product, Size, Weight


def _tokens(features: int) -> Size:
    return Size.of(2 * features, batch=1, tokens=1)


def _matmul(name: str, parameter: str, source: str, outputs: int, inputs: int) -> Op:
    product = Product(Size.of(1), Size.of(1, batch=1, tokens=1), Size.of(outputs), Size.of(inputs))
    weight = Weight(f"{parameter}.weight", (outputs, inputs), 2)
    return Op(name, "matmul", "mm", (source,), (weight,), _tokens(inputs), _tokens(outputs), product)


def _norm(name: str, parameter: str, source: str, hidden: int) -> Op:
    weight = Weight(f"{parameter}.weight", (hidden,), 2)
    return Op(name, "norm", "rms_norm", (source,), (weight,), _tokens(hidden), _tokens(hidden))


def _elementwise(name: str, detail: str, sources: tuple[str, ...], read: int, written: int) -> Op:
    return Op(name, "elementwise", detail, sources, (), _tokens(read), _tokens(written))


def layer_ops(hidden: int, kv_heads: int, ffn: int, head_dim: int) -> OpGraph:
    """Attention and mlp, rotary values left out."""
    kv, heads = kv_heads * head_dim, Heads(hidden // head_dim, kv_heads, head_dim, head_dim, Size.of(1, context=1))
    seen = Size.of(4 * kv, batch=1, context=1) + _tokens(hidden)
    ops = (
        _norm("norm_1", "input_layernorm", "hidden", hidden),
        _matmul("matmul_1", "self_attn.q_proj", "norm_1", hidden, hidden),
        _matmul("matmul_2", "self_attn.k_proj", "norm_1", kv, hidden),
        _matmul("matmul_3", "self_attn.v_proj", "norm_1", kv, hidden),
        Op("cache_1", "cache", "cache_update", ("matmul_2",), (), _tokens(kv), _tokens(kv)),
        Op("cache_2", "cache", "cache_update", ("matmul_3",), (), _tokens(kv), _tokens(kv)),
        Op("attention_1", "attention", "sdpa", ("matmul_1", "cache_1", "cache_2"), (), seen, _tokens(hidden), None, heads),
        _matmul("matmul_4", "self_attn.o_proj", "attention_1", hidden, hidden),
        _elementwise("elementwise_1", "add", ("hidden", "matmul_4"), 2 * hidden, hidden),
        _norm("norm_2", "post_attention_layernorm", "elementwise_1", hidden),
        _matmul("matmul_5", "mlp.gate_proj", "norm_2", ffn, hidden),
        _matmul("matmul_6", "mlp.up_proj", "norm_2", ffn, hidden),
        _elementwise("elementwise_2", "silu mul", ("matmul_5", "matmul_6"), 2 * ffn, ffn),
        _matmul("matmul_7", "mlp.down_proj", "elementwise_2", hidden, ffn),
        _elementwise("elementwise_3", "add", ("elementwise_1", "matmul_7"), 2 * hidden, hidden),
    )
    return OpGraph(("hidden",), ops, ("elementwise_3",))


def first_ops(parameter: str, vocab: int, hidden: int) -> OpGraph:
    weight = Weight(parameter, (vocab, hidden), 2)
    ids = Size.of(8, batch=1, tokens=1)
    return OpGraph(
        ("input_ids",), (Op("gather_1", "gather", "embedding", ("input_ids",), (weight,), ids, _tokens(hidden)),), ("gather_1",)
    )


def last_ops(head: str, vocab: int, hidden: int) -> OpGraph:
    norm, product = (
        _norm("norm_1", "model.norm", "hidden", hidden),
        _matmul("matmul_1", head.removesuffix(".weight"), "norm_1", vocab, hidden),
    )
    return OpGraph(("hidden",), (norm, product), ("matmul_1",))
