"""Quality: real increase of the loss against weight bytes, targets asked and got, and how far indicators agree.

python benchmarks/quality.py allocations|targets|agreement|eight-bits [--model demo]
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from machine import machine
from quality_allocations import Allocation, allocations, title
from quality_eight_bits import eight_bits
from quality_plot import Point, plot
from rich.console import Console
from rich.table import Table

from llmpq import Batch
from llmpq.compiler import compile as compile_model
from llmpq.errors import LlmpqError
from llmpq.frontend.models import resolve, trace_source
from llmpq.frontend.texts import CALIBRATE, read_tokens
from llmpq.hardware.cluster import Cluster
from llmpq.precision import PRECISIONS
from llmpq.program import Calibration
from llmpq.quality_loop import read_check
from llmpq.quantization.agreement import compare
from llmpq.quantization.scoring import Measurements
from llmpq.serialize import from_json, to_json
from llmpq.versions import library_versions

RESULTS = Path(__file__).parent / "results"
QUANTIZERS = ("rtn", "gptq")
TARGETS = (0.005, 0.01, 0.02, 0.05)
TOKENS = 8192
CLUSTER = """
name: two-cpus-with-room-for-8-bits
devices:
  - {{type: CPU, memory: {} MiB, speed: 0.5, host: a}}
  - {{type: CPU, memory: {} MiB, speed: 0.25, host: a}}
links:
  within_host: {{bandwidth: 2 GB/s, latency: 100 us}}
"""
MEMORY_MIB = (6.5, 5.5)  # for the demo model
WORKLOAD = Batch(8, 64, 32)


def targets(model: str, quantizers: Sequence[str], asked: Sequence[float], memory: float) -> list[dict[str, Any]]:
    """Asked, predicted, got: compiled with the closed loop, for both quantizers. memory: times that for the demo model."""
    found, cluster = [], CLUSTER.format(*(memory * mib for mib in MEMORY_MIB))
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
                        Cluster.from_yaml(cluster, "benchmark"),
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
        for row in sorted(value["rows"], key=lambda row: float(row["average_bits"])):
            predicted = "" if row["predicted"] is None else f"{row['predicted']:.4f}"
            got = row["got"]
            figures = (f"{row['average_bits']:.1f}", f"{row['weight_bytes'] / 1024:.0f}", predicted)
            table.add_row(title(from_json(Allocation, row)), *figures, f"{got['mean']:+.4f}", f"{got['error']:.4f}")
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
    elif part == "eight-bits":
        table = Table("all layers", "bytes", "predicted", "got", "±")
        for row in value:
            figures = (f"{row['predicted']['mean']:.5f}", f"{row['got']['mean']:+.5f}", f"{row['got']['error']:.5f}")
            table.add_row(row["what"], f"{row['bytes_share']:.1%}", *figures)
        console.print(table)
    else:
        console.print(json.dumps(value, indent=1))


def draw(value: dict[str, Any], path: Path) -> None:
    """The plot of allocations: increase of the loss against weight bytes."""
    rows = [from_json(Allocation, row) for row in value["rows"]]
    names = ["random" if row.name.startswith("random") else title(row) for row in rows]
    points = [Point(name, row.weight_bytes / 1024, row.got.mean, row.got.error or 0.0) for name, row in zip(names, rows)]
    path.write_text(plot(points, "weights of the layers, KiB", "increase of the loss, nats per token"), encoding="utf-8")


def results_of(model: str) -> Path:
    """quality.json for the demo model, quality-NAME.json for another."""
    name = Path(model).name
    return RESULTS / ("quality.json" if model == "demo" else f"quality-{name}.json")


@click.command()
@click.argument("parts", nargs=-1, required=True, type=click.Choice(["allocations", "targets", "agreement", "eight-bits"]))
@click.option("--model", default="demo", show_default=True)
@click.option("--tokens", default=TOKENS, show_default=True, help="Of the report text, for allocations.")
@click.option("--quantizer", "quantizers", multiple=True, default=QUANTIZERS, show_default=True, help="For targets.")
@click.option("--target", "asked", multiple=True, type=float, default=TARGETS, show_default=True, help="For targets.")
@click.option("--memory", default=1.0, show_default=True, help="For targets: times what the demo model's devices have.")
def main(
    parts: tuple[str, ...], model: str, tokens: int, quantizers: tuple[str, ...], asked: tuple[float, ...], memory: float
) -> None:
    """Measure the parts named, print them and write them into results/quality.json (of another model: quality-NAME.json).

    What was measured is kept in the user's cache, so that a run that is interrupted goes on where it stopped.
    """
    results = results_of(model)
    report: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for part in parts:
        if part == "targets":
            earlier = report.get("targets", {}).get("result", [])
            value: Any = merged(earlier, targets(model, quantizers, asked, memory))
        elif part == "eight-bits":
            value = to_json(eight_bits(measurements(model), tokens))
        else:
            measured = measurements(model)
            precisions = [PRECISIONS[option] for option in ("16", "w8a16", "w4a16", "w3a16")]
            value = allocations(measured, tokens) if part == "allocations" else to_json(compare(measured, precisions))
        report |= {"model": Path(model).name, "versions": library_versions(), part: {"machine": machine(), "result": value}}
        results.write_text(json.dumps(report, indent=1) + "\n")
        show(part, value)
        if part == "allocations":
            draw(value, results.with_suffix(".svg"))


if __name__ == "__main__":
    main()
