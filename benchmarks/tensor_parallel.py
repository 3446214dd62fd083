"""Tensor parallelism: one layer of a 30B Llama split among T4 and L4 in vLLM (Helix), beside what is predicted of the split.

python benchmarks/tensor_parallel.py FOLDER [--json FILE]        FOLDER: llama1_30b of Thesys-lab/Helix-ASPLOS25

What a group computes is what one card was measured to take, times the ratio of what we predict of a part and of the whole. The
rest is its two all-reduces: by the ring that llmpq ships for hosts without peer access, by a ring fitted to the other
groups, by the table of a host with peer access (L40S), and by the ring over the link that clusters assume.
"""

import json
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from layer_times import CONTEXT, TYPES, Measured, layer_s, llama_layer, read
from machine import machine

from llmpq.costs.shard import shard
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import resolve
from llmpq.graph import LayerKind
from llmpq.hardware.cluster import Cluster, Device, Link
from llmpq.hardware.collective_table import collective_s

GROUPS = (("l4", 2), ("t4", 2), ("t4", 4))
LATENCIES_US = np.arange(0.0, 80.0, 1.0)
BANDWIDTHS = np.arange(0.5, 20.0, 0.1) * 1e9
ASSUMED = Link(12e9, 20e-6, "given")  # what clusters assume of a host's links, as if it had been given
SUMS = 2  # all-reduces of a layer
Row = dict[str, Any]


def parts_of(kind: LayerKind, ranks: int) -> LayerKind:
    graph = layer_graph_of(resolve("llama-2-7b", weights=False))
    return shard(replace(graph, kinds=(kind,), layer_kind=(0,)), ranks).kinds[0]


def group_of(name: str, ranks: int) -> Device:
    cluster = Cluster.load(f"{ranks}x{TYPES[name]}")
    return cluster.group(cluster.devices)


def computed_s(name: str, ranks: int, kind: LayerKind, single: Measured, group: Measured) -> np.ndarray:
    """Seconds of a part of the layer, from those measured of the whole, by size of the group's measurements."""
    device = Cluster.load(f"1x{TYPES[name]}").devices[0]
    whole = np.interp(group.sizes, single.sizes, single.seconds)
    part = parts_of(kind, ranks)
    ratios = [layer_s(device, part, group.phase, size) / layer_s(device, kind, group.phase, size) for size in group.sizes]
    return whole * np.array(ratios)


def message_bytes(kind: LayerKind, size: int) -> float:
    return 2.0 * size * kind.linears[0].in_features


class Case:
    """One phase of one group."""

    def __init__(self, name: str, ranks: int, kind: LayerKind, single: Measured, group: Measured) -> None:
        shortest = min(single.sizes)
        kept = [place for place, size in enumerate(group.sizes) if size >= shortest]
        self.group = Measured(group.phase, tuple(group.sizes[place] for place in kept), group.seconds[kept])
        self.name, self.ranks, self.device = name, ranks, group_of(name, ranks)
        self.computed = computed_s(name, ranks, kind, single, self.group)
        self.nbytes = np.array([message_bytes(kind, size) for size in self.group.sizes])

    def ring(self, latency_s: float, bandwidth: float) -> np.ndarray:
        rounds = 2 * (self.ranks - 1)
        return self.computed + SUMS * rounds * (latency_s + self.nbytes / self.ranks / bandwidth)

    def on(self, device: Device) -> np.ndarray:
        return self.computed + SUMS * np.array([collective_s(device, "all-reduce", nbytes) for nbytes in self.nbytes])

    def error(self, seconds: np.ndarray) -> np.ndarray:
        return seconds / self.group.seconds - 1


def fitted(cases: list[Case]) -> tuple[float, float]:
    """Latency and bandwidth of the ring of the least mean error over these."""

    def error(latency_s: float, bandwidth: float) -> float:
        return float(np.mean([np.abs(case.error(case.ring(latency_s, bandwidth))).mean() for case in cases]))

    pairs = ((latency * 1e-6, bandwidth) for latency in LATENCIES_US for bandwidth in BANDWIDTHS)
    return min(pairs, key=lambda pair: error(*pair))


def row(case: Case, by: str, seconds: np.ndarray) -> Row:
    error, ratio = case.error(seconds), case.group.seconds / seconds
    return {
        "group": f"{case.ranks} x {TYPES[case.name]}",
        "phase": case.group.phase,
        "by": by,
        "n": len(case.group.sizes),
        "mean_ape": round(100 * float(np.abs(error).mean()), 1),
        "bias": round(100 * float(error.mean()), 1),
        "ratio_5": round(float(np.quantile(ratio, 0.05)), 2),
        "ratio_95": round(float(np.quantile(ratio, 0.95)), 2),
    }


def rows_of(cases: list[Case]) -> list[Row]:
    found = []
    for case in cases:
        others = [other for other in cases if (other.name, other.ranks) != (case.name, case.ranks)]
        peers = Cluster.load(f"{case.ranks}xL40S")
        ways: dict[str, Callable[[], np.ndarray]] = {
            "as shipped": lambda case=case: case.on(case.device),
            "ring fitted to the other groups": lambda case=case, others=others: case.ring(*fitted(others)),
            "peer access (L40S)": lambda case=case, peers=peers: case.on(peers.group(peers.devices)),
            "ring over the assumed link": lambda case=case: case.on(replace(case.device, within=ASSUMED)),
        }
        found += [row(case, by, seconds()) for by, seconds in ways.items()]
    return found


def main(folder: Path, target: Path | None) -> None:
    kind = llama_layer()
    cases = [
        Case(name, ranks, kind, single, group)
        for name, ranks in GROUPS
        for single, group in zip(read(folder, name), read(folder, f"{name}x{ranks}"), strict=True)
    ]
    latency_s, bandwidth = fitted(cases)
    found = {
        "machine": machine(),
        "context": CONTEXT,
        "fitted_ring": {"latency_us": round(latency_s * 1e6, 1), "bandwidth_gb_per_s": round(bandwidth / 1e9, 1)},
        "rows": rows_of(cases),
    }
    print(f"ring fitted to all: {found['fitted_ring']}")
    for each in found["rows"]:
        print("{group:8} {phase:8} {by:34} n {n:3}  error {mean_ape:5.1f} %  bias {bias:6.1f} %".format(**each))
    if target is not None:
        target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, dest="target")
    given = parser.parse_args()
    main(given.folder, given.target)
