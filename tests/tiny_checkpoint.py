"""A tiny random Llama on disk, its graph and plans for it, for the tests of what is written to disk."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from llmpq.graph import Attention, LayerGraph, LayerKind, Linear, Parameter
from llmpq.hardware.cluster import Cluster
from llmpq.plan import ComputeDtype, Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.workload import Batch

HIDDEN, FFN, VOCABULARY, LAYERS = 128, 192, 96, 4
MIXED = ("w8a8", "w8a16", "w4a16", "16")
ATTENTION = Attention(num_heads=4, num_kv_heads=2, head_dim=32)
LINEARS = (
    Linear("self_attn.q_proj", HIDDEN, 128, False, "attention", "qkv"),
    Linear("self_attn.k_proj", HIDDEN, 64, False, "attention", "qkv"),
    Linear("self_attn.v_proj", HIDDEN, 64, False, "attention", "qkv"),
    Linear("self_attn.o_proj", 128, HIDDEN, False, "attention", "o"),
    Linear("mlp.gate_proj", HIDDEN, FFN, False, "mlp", "gate_up"),
    Linear("mlp.up_proj", HIDDEN, FFN, False, "mlp", "gate_up"),
    Linear("mlp.down_proj", FFN, HIDDEN, False, "mlp", "down"),
)


def graph(
    tied: bool = True, linears: tuple[Linear, ...] = LINEARS, layers: int = LAYERS, architecture: str = "LlamaForCausalLM"
) -> LayerGraph:
    embedding, head = (
        Parameter("model.embed_tokens.weight", (VOCABULARY, HIDDEN)),
        Parameter("lm_head.weight", (VOCABULARY, HIDDEN)),
    )
    norm = Parameter("model.norm.weight", (HIDDEN,))
    return LayerGraph(
        model="tiny",
        architecture=architecture,
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        max_positions=64,
        kinds=(LayerKind("decoder", linears, 2 * HIDDEN, ATTENTION),),
        layer_kind=(0,) * layers,
        layer_names=tuple(f"model.layers.{layer}" for layer in range(layers)),
        first=(embedding,),
        last=(norm,) if tied else (norm, head),
        head="lm_head",
        tied_head="model.embed_tokens.weight" if tied else None,
    )


def plan(options: tuple[str, ...] = MIXED, cuts: tuple[int, ...] = (2,), dtype: ComputeDtype = "bfloat16") -> Plan:
    """One stage between any two cuts."""
    bounds = (0, *cuts, len(options))
    stages = tuple(Stage(f"CPU:{i}", start, options[start:stop]) for i, (start, stop) in enumerate(pairwise(bounds)))
    return Plan(
        model="tiny",
        compute_dtype=dtype,
        workload=Batch(2, 8, 8),
        cluster=Cluster.load(f"{len(stages)}xCPU"),
        pipelines=(Pipeline(stages, 1, 1),),
        prediction=Prediction(1.0, 1.0, (), "assumed"),
        quality=Quality(0.0, None, "assumed"),
        optimality=Optimality(1.0, None, False, "by hand"),
    )


def llama(tied: bool = True) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        vocab_size=VOCABULARY,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.08,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16).eval()


def save_llama(directory: Path, tied: bool = True, shard: str = "5GB") -> Path:
    """A checkpoint as transformers writes it, with a tokenizer file and a generation config beside it."""
    llama(tied).save_pretrained(directory, max_shard_size=shard)
    (directory / "tokenizer.json").write_text('{"version": "1.0"}\n', encoding="utf-8")
    return directory


EXPERTS = 4
MIXTRAL_LINEARS = (
    *LINEARS[:4],
    Linear("mlp.experts.gate_up_proj", HIDDEN, 2 * FFN, False, "mlp", "experts", experts=EXPERTS, active_experts=2),
    Linear("mlp.experts.down_proj", FFN, HIDDEN, False, "mlp", "down", experts=EXPERTS, active_experts=2),
)


def save_mixtral(directory: Path) -> Path:
    """A mixture of experts as transformers writes it: one tensor for each matrix of each expert."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        vocab_size=VOCABULARY,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        num_local_experts=EXPERTS,
    )
    torch.manual_seed(0)
    model: Any = MixtralForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory
