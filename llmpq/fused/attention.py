"""Attention as transformers' modules call it: one new token by our kernel, everything else as `sdpa` computes it."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmpq.fused.attention_kernel import attention_kernel

NAME, REPLACED = "llmpq", "sdpa"
CHANGING = ("position_bias", "cache", "softcap", "output_attentions")  # what `sdpa` is given and does not ignore


def use_attention_kernel(module: nn.Module) -> None:
    """Let the attention layers of a loaded stage that use transformers' `sdpa` use the kernel, where there is one.

    They get copies of their configurations. Layers that choose positions by an index of their own ask for `sdpa` by that name,
    and keep it.
    """
    if attention_kernel() is None:
        return
    AttentionInterface.register(NAME, attention)
    copies: dict[int, PreTrainedConfig] = {}
    for found in module.modules():
        config = getattr(found, "config", None)
        if isinstance(config, PreTrainedConfig) and config._attn_implementation == REPLACED and not hasattr(found, "indexer"):
            vars(found)["config"] = copies.setdefault(id(config), _switched(config))


def _switched(config: PreTrainedConfig) -> PreTrainedConfig:
    switched = copy.copy(config)
    switched._attn_implementation_internal = NAME  # the property would change parts that both share
    return switched


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [batch, heads, tokens, dim], key and value of fewer heads and more positions -> [batch, tokens, heads, value_dim]."""
    kernel = attention_kernel()
    plain = dropout == 0.0 and all(kwargs.get(name) is None or kwargs[name] is False for name in CHANGING)
    if kernel is not None and plain and kernel.accepts(query, key, value, attention_mask):
        return kernel.attend(query, key, value, attention_mask, query.shape[3] ** -0.5 if scaling is None else scaling), None
    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return found
