"""Operators of bundled models: how long recording takes, and how much of a layer's predicted time streams through memory."""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from machine import machine

from llmpq.costs.latency import layer_latency_s
from llmpq.costs.op_latency import of_batch, streams_s
from llmpq.frontend.build import build_model
from llmpq.frontend.layer_kinds import kinds_of_layers
from llmpq.frontend.layer_ops import ModelOps, model_ops
from llmpq.frontend.models import resolve, trace_source
from llmpq.frontend.tracing import decoder_layers, trace
from llmpq.hardware.cluster import Cluster
from llmpq.precision import PRECISIONS

MODELS = ("llama-3-70b", "gemma-3-27b", "deepseek-v3")
STEPS = {"prefill, 8 x 512 tokens": (512, 512, 8), "decode, 32 sequences at 1024": (1, 1024, 32)}


def record(name: str) -> tuple[float, ModelOps]:
    """Seconds of processor time for building and tracing aside."""
    config = resolve(name, weights=False).config
    assert config is not None
    model = build_model(config)
    traced = trace(model)
    start = time.process_time()
    kinds = kinds_of_layers(traced, decoder_layers(model))
    ops = model_ops(traced, kinds)
    return time.process_time() - start, ops


def shares(name: str, device_type: str) -> dict[str, float]:
    """Step -> share of norms, element-wise chains, routing and cache writes in a layer of the most frequent kind, 16 bits."""
    graph = trace_source(resolve(name, weights=False))[1]
    kind = graph.kinds[max(set(graph.layer_kind), key=graph.layer_kind.count)]
    device = Cluster.load(f"1x{device_type}").devices[0]
    found = {}
    for step, (tokens, context, rows) in STEPS.items():
        whole = layer_latency_s(device, kind, PRECISIONS["16"], rows, tokens, context, "float16", "vllm")
        found[step] = round(streams_s(device, kind.ops, of_batch(tokens, context, rows), "float16") / whole, 4)
    return found


def measure(name: str, runs: int) -> dict[str, Any]:
    found = [record(name) for _ in range(runs)]
    seconds = sorted(taken for taken, _ in found)
    return {
        "model": name,
        "operators_per_kind": [len(graph.ops) for graph in found[0][1].kinds.values()],
        "record_s": {"median": round(median(seconds), 3), "min": round(seconds[0], 3), "max": round(seconds[-1], 3)},
        "streamed_share": {device: shares(name, device) for device in ("A100-80", "T4")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = {"machine": machine(), "rows": [measure(n, options.runs) for n in MODELS]}
    text = json.dumps(result, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
