"""Quality: real increase of the loss against weight bytes, targets asked and got, and how far indicators agree.

python benchmarks/quality.py allocations|targets|agreement [--model demo]
"""

import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from machine import machine
from quality_plot import Point, plot
from rich.console import Console
from rich.table import Table

from llmpq import Batch
from llmpq.checkpoint.loss_increase import Losses, losses_of
from llmpq.checkpoint.reader import Checkpoint
from llmpq.compiler import compile as compile_model
from llmpq.errors import LlmpqError
from llmpq.evaluation import Estimate, estimate
from llmpq.frontend.models import resolve, trace_source
from llmpq.frontend.texts import CALIBRATE, REPORT, read_tokens
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.precision import PRECISIONS, Precision
from llmpq.program import Calibration
from llmpq.quality_loop import read_check
from llmpq.quantization.agreement import compare
from llmpq.quantization.fake_quantization import fake_quantized
from llmpq.quantization.indicators import table_of
from llmpq.quantization.original import load_original
from llmpq.quantization.score_store import score_store
from llmpq.quantization.scoring import Measurements
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import to_json
from llmpq.versions import library_versions

RESULTS = Path(__file__).parent / "results" / "quality.json"
PLOT = RESULTS.with_suffix(".svg")
OPTIONS = ("w3a16", "w4a16", "w8a16", "16")
AVERAGES = (4.0, 4.5, 5.0, 6.0)
RANDOM_DRAWS = 2
INDICATORS = ("fisher", "measured", "hessian", "variance")
QUANTIZERS = ("rtn", "gptq")
TARGETS = (0.005, 0.01, 0.02, 0.05)
TOKENS = 8192
CLUSTER = """
name: two-cpus-with-room-for-8-bits
devices:
  - {type: CPU, memory: 6.5 MiB, speed: 0.5, host: a}
  - {type: CPU, memory: 5.5 MiB, speed: 0.25, host: a}
links:
  within_host: {bandwidth: 2 GB/s, latency: 100 us}
"""
WORKLOAD = Batch(8, 64, 32)


@dataclass(frozen=True, slots=True)
class Allocation:
    """A precision for every layer, what chose it, its predicted and its real increase of the loss, nats per token."""

    name: str
    average_bits: float
    weight_bytes: int
    options: tuple[str, ...]
    predicted: float | None
    got: Estimate


def allocate(table: SensitivityTable, sizes: Sequence[int], average_bits: float) -> tuple[str, ...]:
    """The options of least total sensitivity with at most that many bits per weight, exactly, by dynamic programming.

    sizes: weights of every layer; scales are not counted, which 3, 4 and 8 bits have the same number of.
    """
    unit = gcd(*sizes)
    room = int(average_bits * sum(sizes) / unit + 1e-9)
    best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
    for row, size in zip(table.rows, sizes):
        after: dict[int, tuple[float, tuple[str, ...]]] = {}
        for used, (loss, chosen) in best.items():
            for option, value in zip(table.options, row):
                bits = used + PRECISIONS[option].num_bits * size // unit
                if bits <= room and (bits not in after or loss + value < after[bits][0]):
                    after[bits] = (loss + value, (*chosen, option))
        best = after
    return min(best.values())[1]


def layer_sizes(graph: LayerGraph) -> list[int]:
    """Quantizable weights of every layer."""
    kinds = [graph.kind_of(layer) for layer in range(graph.num_layers)]
    return [sum(each.in_features * each.out_features for each in kind.linears if each.is_quantizable) for kind in kinds]


def layer_bytes(graph: LayerGraph, options: Sequence[str]) -> int:
    return sum(graph.kind_of(layer).weight_bytes(PRECISIONS[option]) for layer, option in enumerate(options))


class Report:
    """Losses on the report text, of the original and of allocations, each measured once."""

    def __init__(self, directory: Path, graph: LayerGraph, tokens: int) -> None:
        self.graph, self.model = graph, load_original(directory)
        self.token_ids = read_tokens(directory, REPORT)[0][:tokens]
        self.store = score_store(Checkpoint.open(directory), self.token_ids)

    def of(self, options: tuple[str, ...]) -> list[torch.Tensor]:
        def measure() -> Losses:
            precisions: dict[int, Precision] = {layer: PRECISIONS[option] for layer, option in enumerate(options)}
            with torch.inference_mode(), fake_quantized(self.model, self.graph, precisions):
                return losses_of(self.model, self.token_ids)

        name = f"benchmark-{hashlib.sha256(','.join(options).encode()).hexdigest()[:16]}"
        return [torch.tensor(window) for window in self.store.get_or(name, Losses, measure).windows]

    def difference(self, options: tuple[str, ...], other: tuple[str, ...]) -> Estimate:
        """How far the loss of one lies above the other's, with the standard error of the paired difference."""
        return estimate([mine - beside for mine, beside in zip(self.of(options), self.of(other), strict=True)])


def allocations(measured: Measurements, tokens: int) -> dict[str, Any]:
    """Uniform precisions and mixtures of every indicator at average bits, by rounding to nearest with clipping."""
    graph, sizes = measured.graph, layer_sizes(measured.graph)
    precisions = [PRECISIONS[option] for option in OPTIONS]
    report, layers = Report(measured.calibration.checkpoint, graph, tokens), graph.num_layers
    plain = ("16",) * layers

    def row(name: str, average: float, options: tuple[str, ...], predicted: float | None) -> Allocation:
        return Allocation(name, average, layer_bytes(graph, options), options, predicted, report.difference(options, plain))

    tables = {indicator: table_of(indicator, measured, precisions) for indicator in INDICATORS}
    tables |= {f"random {seed}": shuffled(tables["fisher"], seed) for seed in range(RANDOM_DRAWS)}
    rows = [row(f"uniform {option}", PRECISIONS[option].num_bits, (option,) * layers, None) for option in OPTIONS[:-1]]
    for average in AVERAGES:
        for name, table in tables.items():
            options = allocate(table, sizes, average)
            rows.append(row(name, average, options, None if name.startswith("random") else table.total(options)))
    return {"tokens": len(report.token_ids), "rows": [to_json(each) for each in rows], "against": against(report, rows)}


def shuffled(table: SensitivityTable, seed: int) -> SensitivityTable:
    """The control: the same figures given to layers at random."""
    return replace(table, rows=tuple(random.Random(seed).sample(table.rows, len(table.rows))), errors=None)


def against(report: Report, rows: Sequence[Allocation]) -> list[dict[str, Any]]:
    """Every indicator's mixture below the uniform precision of as many bits, and below the random ones: paired differences."""
    found = []
    for each in (each for each in rows if each.name in INDICATORS):
        for other in rows:
            same = other.average_bits == each.average_bits
            if same and (other.name.startswith("random") or other.name.startswith("uniform")):
                difference = report.difference(each.options, other.options)
                found.append({"name": each.name, "average_bits": each.average_bits, "other": other.name, **asdict(difference)})
    return found


def targets(model: str, quantizers: Sequence[str], asked: Sequence[float]) -> list[dict[str, Any]]:
    """Asked, predicted, got: compiled with the closed loop, for both quantizers."""
    found = []
    for quantizer in quantizers:
        for increase in asked:
            started = time.perf_counter()
            with TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                head = {"quantizer": quantizer, "max_ppl_increase": increase}
                error = None
                try:
                    compile_model(
                        model,
                        Cluster.from_yaml(CLUSTER, "benchmark"),
                        WORKLOAD,
                        out=out,
                        max_ppl_increase=increase,
                        quantizer=quantizer,
                        precisions=("16", "w8a16", "w4a16"),
                    )
                except LlmpqError as raised:
                    error = str(raised)
                check = read_check(out) if out.exists() else None
            seconds = round(time.perf_counter() - started, 1)
            found.append({**head, "error": error, "check": to_json(check), "seconds": seconds})
    return found


def merged(earlier: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of both by quantizer and target, the new ones instead of the earlier."""
    rows = {(row["quantizer"], row["max_ppl_increase"]): row for row in (*earlier, *found)}
    return [rows[key] for key in sorted(rows, reverse=True, key=lambda key: (key[0], -key[1]))]


def measurements(model: str) -> Measurements:
    source = resolve(model, weights=True)
    assert source.directory is not None
    ids, name = read_tokens(source.directory, CALIBRATE)
    return Measurements.of(trace_source(source)[1], Calibration(source.directory, ids, name))


def show(part: str, value: Any) -> None:
    console = Console(highlight=False, markup=False, width=130)
    if part == "allocations":
        table = Table("chosen by", "bits", "KiB", "predicted", "got", "±")
        for row in value["rows"]:
            predicted = "" if row["predicted"] is None else f"{row['predicted']:.4f}"
            got = row["got"]
            figures = (f"{row['average_bits']:.1f}", f"{row['weight_bytes'] / 1024:.0f}", predicted)
            table.add_row(row["name"], *figures, f"{got['mean']:+.4f}", f"{got['error']:.4f}")
        console.print(table)
    elif part == "targets":
        table = Table("quantizer", "asked", "predicted", "got (tune)", "got (report)", "rounds", "held", "s")
        for row in value:
            if row["check"] is None:
                table.add_row(row["quantizer"], f"{row['max_ppl_increase']:.1%}", str(row["error"])[:40])
                continue
            check, last = row["check"], row["check"]["rounds"][-1]
            got = (f"{each['mean']:+.4f} ± {each['error']:.4f}" for each in (last["got"], check["report"]) if each)
            head = (row["quantizer"], f"{row['max_ppl_increase']:.1%} = {check['asked']:.4f}", f"{last['predicted']:.4f}")
            table.add_row(*head, *got, str(len(check["rounds"])), str(check["held"]), f"{row['seconds']:.0f}")
        console.print(table)
    else:
        console.print(json.dumps(value, indent=1))


def draw(value: dict[str, Any]) -> None:
    """The plot of allocations: increase of the loss against weight bytes."""
    points = [
        Point(row["name"].split()[0], row["weight_bytes"] / 1024, row["got"]["mean"], row["got"]["error"])
        for row in value["rows"]
    ]
    PLOT.write_text(plot(points, "weights of the layers, KiB", "increase of the loss, nats per token"), encoding="utf-8")


@click.command()
@click.argument("parts", nargs=-1, required=True, type=click.Choice(["allocations", "targets", "agreement"]))
@click.option("--model", default="demo", show_default=True)
@click.option("--tokens", default=TOKENS, show_default=True, help="Of the report text, for allocations.")
@click.option("--quantizer", "quantizers", multiple=True, default=QUANTIZERS, show_default=True, help="For targets.")
@click.option("--target", "asked", multiple=True, type=float, default=TARGETS, show_default=True, help="For targets.")
def main(parts: tuple[str, ...], model: str, tokens: int, quantizers: tuple[str, ...], asked: tuple[float, ...]) -> None:
    """Measure the parts named, print them and write them into results/quality.json.

    What was measured is kept in the user's cache, so that a run that is interrupted goes on where it stopped.
    """
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parts:
        if part == "targets":
            earlier = report.get("targets", {}).get("result", [])
            value: Any = merged(earlier, targets(model, quantizers, asked))
        else:
            measured = measurements(model)
            precisions = [PRECISIONS[option] for option in ("16", "w8a16", "w4a16", "w3a16")]
            value = allocations(measured, tokens) if part == "allocations" else to_json(compare(measured, precisions))
        report |= {"model": model, "versions": library_versions(), part: {"machine": machine(), "result": value}}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        show(part, value)
        if part == "allocations":
            draw(value)


if __name__ == "__main__":
    main()
