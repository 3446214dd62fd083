"""Costs: bytes and seconds of a layer graph on a cluster."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmpq.costs.latency import head_latency_s, layer_latency_s
from llmpq.costs.memory import activation_bytes, kv_cache_bytes
from llmpq.costs.serving import derive_costs
from llmpq.costs.table import CostTable, PhaseCosts, ServingStep

if TYPE_CHECKING:
    from llmpq.costs.predict import Estimate, attention_estimate, attention_latency_s, gemm_band, gemm_estimate, gemm_latency_s

__all__ = [
    "CostTable",
    "Estimate",
    "PhaseCosts",
    "ServingStep",
    "activation_bytes",
    "attention_estimate",
    "attention_latency_s",
    "derive_costs",
    "gemm_band",
    "gemm_estimate",
    "gemm_latency_s",
    "head_latency_s",
    "kv_cache_bytes",
    "layer_latency_s",
]


def __getattr__(name: str) -> Any:
    """Predictors by their names, at first use: they import numpy."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("llmpq.costs.predict"), name)
