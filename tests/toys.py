"""A small decoder with rotary attention, its split into stages, and slow references that use neither cache nor padding."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmpq.graph import Attention, LayerGraph, LayerKind
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.runtime.kv_cache import KvCache, PassingCache
from llmpq.workload import Batch

HIDDEN, HEADS, HEAD_DIM, VOCAB, LAYERS = 32, 4, 8, 61, 4
WORKLOAD = Batch(8, 12, 8)


class ToyLayer(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.up, self.down = nn.Linear(HIDDEN, 2 * HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor, mask: Tensor, position_ids: Tensor, cache: KvCache) -> Tensor:
        rows, tokens, _ = x.shape
        split = self.qkv(F.layer_norm(x, (HIDDEN,))).view(rows, tokens, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        keys, values = cache.update(rotate(split[1], position_ids), split[2], self.index)
        mixed = F.scaled_dot_product_attention(rotate(split[0], position_ids), keys, values, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, tokens, HIDDEN))
        result: Tensor = x + self.down(F.gelu(self.up(F.layer_norm(x, (HIDDEN,)))))
        return result


class ToyStage(nn.Module):
    """Some layers of the toy, with the embedding before the first and the head behind the last."""

    def __init__(self, layers: Sequence[ToyLayer], embedding: nn.Embedding | None, head: nn.Linear | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.embedding, self.head = embedding, head

    def forward(self, x: Tensor, attention_mask: Tensor | None, position_ids: Tensor, past_key_values: KvCache) -> Tensor:
        hidden = x if self.embedding is None else self.embedding(x)
        mask = visible(attention_mask, hidden.shape[1], past_key_values.get_seq_length())
        for layer in self.layers:
            hidden = layer(hidden, mask, position_ids, past_key_values)
        result: Tensor = hidden if self.head is None else self.head(F.layer_norm(hidden, (HIDDEN,)))
        return result


def visible(attention_mask: Tensor | None, tokens: int, past: int) -> Tensor:
    """Causal, without padding; a query that sees nothing, being padding, sees itself, so that no row of the softmax is empty."""
    queries, keys = torch.arange(past, past + tokens)[:, None], torch.arange(past + tokens)[None]
    causal = (keys <= queries)[None, None]
    if attention_mask is None:
        return causal
    seen = causal & attention_mask.bool()[:, None, None]
    return seen | (~seen.any(-1, keepdim=True) & (keys == queries))


def rotate(x: Tensor, position_ids: Tensor) -> Tensor:
    angles = position_ids[:, None, :, None] * 0.3 ** torch.arange(HEAD_DIM // 2)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def toy_stages(cuts: Sequence[int], seed: int = 0) -> list[ToyStage]:
    """Stages with that many layers each, all of one model that depends on the seed alone."""
    torch.manual_seed(seed)
    layers = [ToyLayer(index) for index in range(LAYERS)]
    embedding, head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB)
    with torch.no_grad():
        head.weight *= 4  # sharper distributions: greedy choices with a margin above rounding
    bounds = [sum(cuts[:index]) for index in range(len(cuts) + 1)]
    assert bounds[-1] == LAYERS
    return [
        ToyStage(layers[start:stop], embedding if start == 0 else None, head if stop == LAYERS else None).eval()
        for start, stop in pairwise(bounds)
    ]


def toy_graph(max_positions: int = 64) -> LayerGraph:
    kind = LayerKind("toy", (), 0, Attention(HEADS, HEADS, HEAD_DIM))
    names = tuple(f"layers.{index}" for index in range(LAYERS))
    return LayerGraph("toy", "Toy", HIDDEN, VOCAB, max_positions, (kind,), (0,) * LAYERS, names, (), (), "head", None)


def toy_plan(cuts: Sequence[int], prefill: int = 2, decode: int = 4, workload: Batch = WORKLOAD) -> Plan:
    stages = tuple(Stage(f"CPU:{index}", sum(cuts[:index]), ("16",) * layers) for index, layers in enumerate(cuts))
    return Plan(
        model="toy",
        compute_dtype="float32",
        workload=workload,
        cluster=Cluster.load(f"{len(cuts)}xCPU"),
        pipelines=(Pipeline(stages, prefill, decode),),
        prediction=Prediction(0.0, 0.0, (), "none"),
        quality=Quality(0.0, None, "none"),
        optimality=Optimality(0.0, None, False, "hand"),
    )


def prompts_of(lengths: Sequence[int], seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def reference_log_probs(tokens: Sequence[int], seed: int = 0) -> Tensor:
    """[tokens, vocab]: the whole model, one sequence, one pass."""
    (model,) = toy_stages((LAYERS,), seed)
    positions = torch.arange(len(tokens))[None]
    logits: Tensor = model(torch.tensor([list(tokens)]), None, positions, PassingCache())
    return logits[0].log_softmax(-1)


def reference_greedy(prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy continuation that computes everything anew for each token."""
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(reference_log_probs(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def reference_forced(prompt: Sequence[int], continuation: Sequence[int]) -> list[float]:
    """Log-probability of each token of the continuation given all before it."""
    log_probs = reference_log_probs([*prompt, *continuation])
    return [float(log_probs[len(prompt) - 1 + index, token]) for index, token in enumerate(continuation)]
