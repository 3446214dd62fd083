"""Validate: predicted beside measured of compiled models, by a profile of this machine that was taken just before.

python benchmarks/validate.py [--model demo] [--profile FILE] [--rounds 3] [--json FILE]
"""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from machine import machine
from rich.console import Console
from rich.table import Table

from llmpq.compiled import load
from llmpq.compiler import compile
from llmpq.costs.profile import Profile
from llmpq.frontend.models import resolve
from llmpq.hardware.cluster import Cluster
from llmpq.precision import PRECISIONS, parse_precisions
from llmpq.profiling.profile_file import read_profile, write_profile
from llmpq.profiling.profiler import profile_model, subject_of
from llmpq.profiling.sizes import QUICK
from llmpq.profiling.validation import validate
from llmpq.workload import Batch

MEASURED = parse_precisions("16,w8a8,w8a16,w4a16")
CLUSTERS = ("1xCPU", "1xCPU+1xCPU")
WORKLOADS = (Batch(1, 64, 32), Batch(4, 200, 32), Batch(8, 64, 32))
RESULTS = Path(__file__).parent / "results" / "validate.json"


@dataclass(frozen=True)
class Row:
    """Measured over predicted of one figure of one plan: every round's, and the seconds or bytes predicted."""

    cluster: str
    workload: tuple[int, int, int]
    precision: str
    what: str
    device: str
    predicted: float
    ratios: tuple[float, ...]
    is_within: bool

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def rows_of(model: str, cluster: str, workload: Batch, precision: str, profile: Path, rounds: int) -> list[Row]:
    """One plan at one precision on alike devices, whose stages share this machine in turn."""
    with TemporaryDirectory() as folder:
        devices = Cluster.load(cluster)
        rule = () if len(devices.devices) == 1 else ("layers[0].device != layers[-1].device",)
        out = compile(
            model,
            devices,
            workload,
            out=Path(folder) / "out",
            profile=profile,
            precisions=precision,
            constraints=rule,
            indicator="prior",
            quantizer="rtn",
            quality_check=False,
            theta=0.0,
        ).directory
        runs = [validate(load(out), read_profile(profile)).rows for _ in range(rounds)]
    shape = (workload.batch_size, workload.prompt_len, workload.gen_len)
    return [
        Row(cluster, shape, precision, r[0].what, r[0].device, r[0].predicted, tuple(x.ratio for x in r), r[0].is_within)
        for r in zip(*runs)
    ]


def taken_now(model: str, path: Path) -> Profile:
    """The quick profile of this machine."""

    def keep(found: Profile) -> None:
        write_profile(path, found)

    return profile_model(subject_of(resolve(model, weights=False), "cpu"), MEASURED, QUICK, keep)


@click.command()
@click.option("--model", default="demo", show_default=True)
@click.option(
    "--profile", "given", type=click.Path(path_type=Path), help="A profile of this machine; a quick one is taken if none."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--precisions", default="16,w4a16", show_default=True, help="Uniform precisions to compile.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS, show_default="benchmarks/results/validate.json")
def main(model: str, given: Path | None, rounds: int, precisions: str, path: Path) -> None:
    """Compile, run and compare every cell; the summary is of medians over rounds."""
    with TemporaryDirectory() as folder:
        file = given or Path(folder) / "profile.json"
        profile = read_profile(file) if given else taken_now(model, file)
        cells = [(c, w, p) for c in CLUSTERS for w in WORKLOADS for p in precisions.split(",") if p in PRECISIONS]
        rows = [row for cell in cells for row in rows_of(model, *cell, file, rounds)]
    table = Table("what", "cells", "median ratio", "quartiles", "median |error|", "within band")
    summary = {}
    for what in dict.fromkeys(row.what for row in rows):
        own = [row for row in rows if row.what == what]
        ratios = [row.ratio for row in own]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        error = statistics.median(abs(ratio - 1) for ratio in ratios)
        within = sum(row.is_within for row in own)
        summary[what] = {"cells": len(own), "ratio": middle, "quartiles": (low, high), "error": error, "within": within}
        table.add_row(what, str(len(own)), f"{middle:.3f}", f"{low:.3f}-{high:.3f}", f"{error:.1%}", f"{within}")
    Console().print(table)
    Console().print("band: {:.0%} to {:.0%}".format(*profile.band))
    found = {"machine": machine(), "model": model, "rounds": rounds, "band": profile.band, "summary": summary}
    path.write_text(json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
