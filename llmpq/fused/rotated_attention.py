"""Attention layers with rotated queries and keys, in few operations, recognised by what they hand to cache and attention."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from llmpq.fused.attention import CHANGING, NAME, attention
from llmpq.fused.operators import Operators, operators
from llmpq.fused.probing import FAILURES, agree, draw, probing, use_instead
from llmpq.quantization.merged_linear import MergedLinear, merged_linear
from llmpq.quantization.quantized_linear import QuantizedLinear

PROBED = "llmpq-probe"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")  # transformers' names, which most of its models share
NORMS = ("q_norm", "k_norm")
ARGUMENTS = ("hidden_states", "position_embeddings", "attention_mask", "past_key_values")
Linear = nn.Linear | QuantizedLinear


class Cache(Protocol):
    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class RotatedAttention:
    """What the attention layer `module` computes, for bfloat16; calls of another form go to its own code.

    options: what it tells attention beside the tensors, always the same
    """

    operators: Operators
    module: nn.Module
    own: Callable[..., tuple[Tensor, Tensor | None]]
    projections: tuple[Linear, ...]
    norms: tuple[nn.Module, ...]
    dim: int
    layer: int
    options: dict[str, Any]
    merged: MergedLinear | None = None

    def __call__(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **rest: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if position_embeddings is None or not self._takes(hidden_states, *position_embeddings):
            return self.own(hidden_states, position_embeddings, attention_mask, past_key_values, **rest)
        query, key, value = self.states(hidden_states, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        return self.output(attention(self.module, query, key, value, attention_mask, **self.options)[0]), None

    def states(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values, [batch, heads, tokens, dim] each."""
        batch, tokens, _ = hidden.shape
        flat = hidden.reshape(batch * tokens, -1)
        turn = tuple(part.expand(batch, -1, -1).contiguous() for part in (cosine, sine))
        if self.merged is not None:
            return self._of_merged(self.merged.product(flat), batch, turn)
        states = [linear(flat).view(batch * tokens, -1, self.dim) for linear in self.projections[:3]]
        states[:2] = [norm(state) for norm, state in zip(self.norms, states)] or states[:2]
        for state in states[:2]:
            self.operators.rotate(state, *turn)
        query, key, value = (state.view(batch, tokens, -1, self.dim).transpose(1, 2) for state in states)
        return query, key, value

    def _of_merged(self, states: Tensor, batch: int, turn: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys are beside each other, and turned together."""
        rows, total = states.shape
        sizes = [linear.out_features // self.dim for linear in self.projections[:3]]
        self.operators.rotate(states.view(rows, total // self.dim, self.dim)[:, : sizes[0] + sizes[1]], *turn)
        heads = states.view(batch, rows // batch, total // self.dim, self.dim).transpose(1, 2)
        query, key, value = torch.split(heads, sizes, 1)
        return query, key, value

    def output(self, attended: Tensor) -> Tensor:
        """attended: [batch, tokens, heads, dim]"""
        y: Tensor = self.projections[3](attended.reshape(*attended.shape[:2], -1))
        return y

    def _takes(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> bool:
        plain = hidden.dtype == cosine.dtype == sine.dtype == torch.bfloat16 and cosine.dim() == 3
        return plain and cosine.shape == sine.shape and cosine.shape[2] == self.dim and cosine.shape[0] in (1, hidden.shape[0])


def fuse_attention(module: nn.Module) -> bool:
    """Whether a module, its linears prepared and its norms fused, is an attention layer of that form; it is computed so then."""
    found = _candidate(module)
    if found is None:
        return False
    with probing() as generator:
        hidden = draw(generator, 2, 3, found.projections[0].in_features)
        angles = torch.rand(2, 3, found.dim // 2, generator=generator).repeat(1, 1, 2) * 6.0
        turn = (angles.cos().bfloat16(), angles.sin().bfloat16())
        call = _watched(module, hidden, turn)
        if call is None or not _same(found, call, hidden, turn):
            return False
    options: dict[str, Any] = {name: call.options[name] for name in ("scaling", "is_causal") if name in call.options}
    merged = None if found.norms else merged_linear(found.projections[:3])
    known = (found.operators, module, found.own, found.projections, found.norms, found.dim, found.layer)
    use_instead(module, RotatedAttention(*known, options, merged))
    return True


def _candidate(module: nn.Module) -> RotatedAttention | None:
    kernel, children = operators(), dict(module.named_children())
    dim, layer = getattr(module, "head_dim", None), getattr(module, "layer_idx", None)
    if kernel is None or not isinstance(dim, int) or not isinstance(layer, int):
        return None
    if (
        set(children) not in (set(PROJECTIONS), {*PROJECTIONS, *NORMS})
        or next(module.parameters(recurse=False), None) is not None
    ):
        return None
    projections = tuple(found for name in PROJECTIONS if isinstance(found := children[name], Linear))
    if len(projections) < len(PROJECTIONS) or tuple(signature(module.forward).parameters)[: len(ARGUMENTS)] != ARGUMENTS:
        return None
    norms = tuple(children[name] for name in NORMS if name in children)
    return RotatedAttention(kernel, module, module.forward, projections, norms, dim, layer, {})


@dataclass(frozen=True, slots=True)
class _Call:
    """What a layer gave to attention, what it had given to the cache before, and what it returned."""

    states: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]
    layer: int
    output: Tensor


class _Noted(threading.local):
    """The last call of attention of this thread while a probe runs."""

    def __init__(self) -> None:
        self.states: tuple[Tensor, Tensor, Tensor] | None = None
        self.options: dict[str, Any] = {}


_noted = _Noted()


class _PassingCache:
    layer = -1

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.layer = layer_idx
        return key, value


def _note(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """In place of attention: hands the queries on."""
    _noted.states, _noted.options = (query, key, value), options
    return query.transpose(1, 2).contiguous(), None


def _watched(module: nn.Module, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> _Call | None:
    """One call of a layer whose attention is ours; None where it does not come to that, or asks for more than plain attention."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "_attn_implementation", None) != NAME:
        return None
    AttentionInterface.register(PROBED, _note)
    cache, _noted.states = _PassingCache(), None
    config._attn_implementation_internal = PROBED
    try:
        output, _ = module(hidden, turn, None, cache)
    except FAILURES:
        return None
    finally:
        config._attn_implementation_internal = NAME
    asked = any(_noted.options.get(name) not in (None, False) for name in CHANGING) or _noted.options.get("dropout")
    return None if _noted.states is None or asked else _Call(_noted.states, _noted.options, cache.layer, output)


def _same(found: RotatedAttention, call: _Call, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> bool:
    states = found.states(hidden, *turn)
    agreed = all(agree(state, wanted, equal=0.0) for state, wanted in zip(states, call.states))
    return agreed and call.layer == found.layer and agree(found.output(states[0].transpose(1, 2)), call.output, equal=0.0)
