"""Tiny random models of every family, and programs that place them on CPUs."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llmpq.frontend.layer_graph import layer_graph
from llmpq.frontend.tracing import trace
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.plan import DeviceMemory, Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.precision import parse_precisions
from llmpq.program import Program, Request
from llmpq.runtime.kv_cache import KvCache
from llmpq.workload import Batch

VOCABULARY = 64
COMMON = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
}
SHAPE = COMMON | {"intermediate_size": 48, "max_position_embeddings": 64}
GQA = SHAPE | {"num_key_value_heads": 2}
SLIDING = {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}

VALUES: dict[str, dict[str, Any]] = {
    "llama": GQA,
    "qwen2": GQA,
    "qwen3": GQA | {"head_dim": 16, "tie_word_embeddings": True},
    "mistral": GQA | {"sliding_window": 6},
    "opt": COMMON | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 16, "pad_token_id": 1},
    "gpt2": COMMON | {"n_positions": 64},
    "gemma3_text": GQA | SLIDING,
    "mixtral": GQA | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": GQA | {"pad_token_id": 0},
    "gemma2": GQA | SLIDING,
    "bloom": COMMON,
    "gpt_neox": SHAPE,
    "falcon": COMMON,
    "qwen3_moe": GQA | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
CONFIGS: dict[str, PreTrainedConfig] = {
    family.removesuffix("_text"): AutoConfig.for_model(family, **values) for family, values in VALUES.items()
}
EAGER_ONLY = ("gemma2", "bloom")  # transformers gives them no sdpa attention


def tiny_config(family: str) -> PreTrainedConfig:
    return copy.deepcopy(CONFIGS[family])


def tiny_model(family: str, attn_implementation: str | None = None) -> PreTrainedModel:
    """Random weights, fp32, always the same; sdpa attention where there is one."""
    attn_implementation = attn_implementation or ("eager" if family in EAGER_ONLY else "sdpa")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        tiny_config(family), attn_implementation=attn_implementation, dtype=torch.float32
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    built: PreTrainedModel = model.eval()
    return built


Call = tuple[Tensor, Tensor, Tensor]


def calls(padded: bool, steps: int = 3, batch: int = 3, prompt_len: int = 7) -> list[Call]:
    """(input_ids, attention_mask, position_ids) of a prefill and `steps` decode steps; `padded`: on the left, unequally."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, prompt_len, dtype=torch.long)
    if padded:
        mask[0, :3] = 0
        mask[2, :1] = 0
    made: list[Call] = []
    for tokens in (prompt_len, *([1] * steps)):
        ids = torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens:]
        made.append((ids, mask, positions))
        mask = torch.cat([mask, torch.ones(batch, 1, dtype=torch.long)], dim=1)
    return made


def run(
    modules: Sequence[Callable[..., Any]], graph: LayerGraph, inputs: Sequence[Call], absent_mask: bool = False
) -> list[Tensor]:
    """Logits of each call through the modules in sequence, with one cache for the whole run."""
    layers = {layer: graph.kind_of(layer).attention for layer in range(graph.num_layers)}
    cache = KvCache(layers, len(inputs[0][0]), 32, torch.float32)
    logits = []
    with torch.no_grad():
        for ids, mask, positions in inputs:
            x = ids
            for module in modules:
                x = module(x, None if absent_mask else mask, positions, cache)
            cache.advance(ids.shape[1])
            logits.append(x)
    return logits


def program_of(model: PreTrainedModel, stages: Sequence[Sequence[str]]) -> Program:
    """The traced model with a plan: an option per layer of each stage, a CPU per stage."""
    traced = trace(model)
    graph = layer_graph(model, traced, "tiny")
    starts = [sum(map(len, stages[:index])) for index in range(len(stages))]
    planned = tuple(Stage(f"CPU:{index}", start, tuple(options)) for index, (start, options) in enumerate(zip(starts, stages)))
    workload = Batch(batch_size=3, prompt_len=7, gen_len=4)
    cluster = Cluster.load(f"{len(stages)}xCPU")
    memory = tuple(DeviceMemory(device.name, 0, 0, 0, 0, 0, device.capacity_bytes) for device in cluster.devices)
    plan = Plan(
        model="tiny",
        compute_dtype="float32",
        workload=workload,
        cluster=cluster,
        pipelines=(Pipeline(planned, 3, 3),),
        prediction=Prediction(1.0, 1.0, memory, "test"),
        quality=Quality(0.0, None, "test"),
        optimality=Optimality(2.0, None, False, "test"),
    )
    request = Request(cluster, workload, parse_precisions("16,w8a8,w8a16,w4a16"))
    return Program(graph, request, compute_dtype="float32", plan=plan, graph_module=traced)
