"""Costs: bytes and seconds of a layer graph on a cluster."""

from llmpq.costs.memory import activation_bytes, kv_cache_bytes
from llmpq.costs.roofline import head_latency_s, layer_latency_s
from llmpq.costs.table import CostTable, PhaseCosts, derive_costs

__all__ = ["CostTable", "PhaseCosts", "activation_bytes", "derive_costs", "head_latency_s", "kv_cache_bytes", "layer_latency_s"]
