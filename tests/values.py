"""Small values that several tests build on."""

from llmpq.graph import Attention, LayerGraph, LayerKind, Linear, Parameter
from llmpq.hardware.cluster import Cluster
from llmpq.precision import Part, parse_precisions
from llmpq.program import Program, Request, Target
from llmpq.workload import Batch
from tests.hand_made_ops import first_ops, last_ops, layer_ops

WORKLOAD = Batch(8, 64, 32)
TWO_PERCENT = Target()
TWO_CPUS = """
name: two-cpus
devices:
  - {type: CPU, memory: %s, speed: 0.5, host: a}
  - {type: CPU, memory: %s, speed: 0.25, host: a}
links:
  within_host: {bandwidth: 2 GB/s, latency: 100 us}
"""


def two_cpus(first: str = "64 MiB", second: str = "64 MiB") -> Cluster:
    """Two CPUs of unlike speed, with that much memory."""
    return Cluster.from_yaml(TWO_CPUS % (first, second), "two-cpus.yaml")


def llama_kind(hidden: int = 128, kv_heads: int = 1, ffn: int = 256, head_dim: int = 64, window: int | None = None) -> LayerKind:
    """A Llama layer as the tracer reports it."""
    kv = kv_heads * head_dim
    attention: Part = "attention"
    mlp: Part = "mlp"
    return LayerKind(
        "layer-0",
        (
            Linear("self_attn.q_proj", hidden, hidden, False, attention, "self_attn.q_proj"),
            Linear("self_attn.k_proj", hidden, kv, False, attention, "self_attn.q_proj"),
            Linear("self_attn.v_proj", hidden, kv, False, attention, "self_attn.q_proj"),
            Linear("self_attn.o_proj", hidden, hidden, False, attention, "self_attn.o_proj"),
            Linear("mlp.gate_proj", hidden, ffn, False, mlp, "mlp.gate_proj"),
            Linear("mlp.up_proj", hidden, ffn, False, mlp, "mlp.gate_proj"),
            Linear("mlp.down_proj", ffn, hidden, False, mlp, "mlp.down_proj"),
        ),
        2 * hidden,
        Attention(hidden // head_dim, kv_heads, head_dim, window),
        layer_ops(hidden, kv_heads, ffn, head_dim),
    )


def llama_graph(num_layers: int = 4, hidden: int = 128, vocab: int = 512, tied: bool = True) -> LayerGraph:
    """A small Llama, its head tied to the embedding or not."""
    embedding = Parameter("model.embed_tokens.weight", (vocab, hidden))
    untied = Parameter("lm_head.weight", (vocab, hidden))
    head = () if tied else (untied,)
    return LayerGraph(
        model="tiny",
        architecture="LlamaForCausalLM",
        hidden_size=hidden,
        vocab_size=vocab,
        max_positions=1024,
        kinds=(llama_kind(hidden),),
        layer_kind=(0,) * num_layers,
        layer_names=tuple(f"model.layers.{i}" for i in range(num_layers)),
        first=(embedding,),
        last=(Parameter("model.norm.weight", (hidden,)), *head),
        head="lm_head",
        tied_head=embedding.name if tied else None,
        first_ops=first_ops(embedding.name, vocab, hidden),
        last_ops=last_ops(embedding.name if tied else untied.name, vocab, hidden),
    )


def program(
    graph: LayerGraph | None = None,
    cluster: Cluster | None = None,
    workload: Batch = WORKLOAD,
    precisions: str = "16,w8a16,w4a16",
    target: Target = TWO_PERCENT,
) -> Program:
    """A program before any pass."""
    return Program(graph or llama_graph(), Request(cluster or two_cpus(), workload, parse_precisions(precisions), target))
