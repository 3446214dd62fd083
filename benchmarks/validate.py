"""Validate: predicted beside measured of models that run on this machine, by a profile of it that was taken just before.

python benchmarks/validate.py [--model demo] [--rounds 3] [--seconds 170] [--json FILE]     again until all cells are there
python benchmarks/validate.py --model random-2048x16-32k            16 layers of hidden size 2048, random weights that no disk has
python benchmarks/validate.py --model random-2048x16-32k --memory   bytes alone, which need no quiet machine and no profile
python benchmarks/validate.py --memory --without-kernels            the same on a machine without a C compiler, as it is made one
"""

import gc
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from machine import machine
from random_llama import LARGE, random_llama
from rich.console import Console
from rich.table import Table
from torch import nn

from llmpq.compiled import load
from llmpq.compiler import compile, plan
from llmpq.costs.profile import Profile
from llmpq.frontend.models import resolve
from llmpq.fused.prepare import prepare_stage
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import LOWERING, parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.precision import parse_precisions
from llmpq.profiling.probe import Subject
from llmpq.profiling.profile_file import read_profile, write_profile
from llmpq.profiling.profiler import profile_model, subject_of
from llmpq.profiling.random_weights import fill
from llmpq.profiling.sizes import QUICK, Extent
from llmpq.profiling.validation import Comparison, compare, validate
from llmpq.program import Program, Request
from llmpq.quantization.packed_kernels import packed_kernels
from llmpq.workload import Batch

MEASURED = "16,w8a8,w8a16,w4a16"
CLUSTERS = ("1xCPU", "1xCPU+1xCPU")
WORKLOADS = {
    "demo": (Batch(1, 64, 32), Batch(4, 200, 32), Batch(8, 64, 32)),
    LARGE: (Batch(1, 64, 12), Batch(2, 100, 12), Batch(4, 32, 12)),
}
# Off the workloads' sizes, so that what is compared is interpolated.
LONG = Extent((1, 2, 4), (16, 48, 128), (32, 160), 256, 120.0)
RESULTS = Path(__file__).parent / "results"
WORK = Path(".validate")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """A plan at one precision on devices that are alike, whose stages share this machine in turn."""

    cluster: str
    workload: Batch
    precision: str

    @property
    def name(self) -> str:
        batch = self.workload
        return f"{self.precision} {self.cluster} {batch.batch_size} x {batch.prompt_len} + {batch.gen_len}"

    @property
    def options(self) -> Json:
        rule = () if self.cluster == CLUSTERS[0] else ("layers[0].device != layers[-1].device",)
        return {"precisions": self.precision, "constraints": rule, "indicator": "prior", "theta": 0.0}


def cells(model: str, precisions: str) -> Iterator[Cell]:
    """By precision, then cluster: weights are made anew when one of them changes."""
    workloads = WORKLOADS.get(model, WORKLOADS["demo"])
    return (Cell(cluster, batch, name) for name in precisions.split(",") for cluster in CLUSTERS for batch in workloads)


class RandomStages:
    """The stages of a plan with random weights; those of the last plan are kept for the next that has the same."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._kept: tuple[tuple[object, ...], list[nn.Module]] | None = None

    def of(self, made: Plan) -> list[nn.Module]:
        key = made.stages
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            gc.collect()  # of modules, which refer to themselves, before there are others: two models' weights may not fit
            self._kept = key, self._stages(made)
        return self._kept[1]

    def _stages(self, made: Plan) -> list[nn.Module]:
        subject = self.subject
        request = Request(made.cluster, made.workload, parse_precisions(tuple(dict.fromkeys(made.options))))
        program = Program(subject.graph, request, compute_dtype=made.compute_dtype, plan=made, graph_module=subject.traced)
        stages: list[nn.Module] = list(run_passes(program, parse_pipeline(LOWERING)).require("stages"))
        for stage in stages:
            fill(stage, getattr(torch, made.compute_dtype), subject.device)
            prepare_stage(stage)
            stage.eval().requires_grad_(False)
        return stages


def rows_of_compiled(model: str, cell: Cell, profile: Path | None, rounds: int) -> list[Sequence[Comparison]]:
    """A model with weights, quantized and loaded from its shards."""
    with TemporaryDirectory() as folder:
        rest: Json = {"profile": profile, "quantizer": "rtn", "quality_check": False}
        compiled = compile(model, Cluster.load(cell.cluster), cell.workload, out=Path(folder) / "out", **cell.options, **rest)
        return [validate(load(compiled.directory), profile and read_profile(profile)).rows for _ in range(rounds)]


def rows_of_random(stages: RandomStages, model: str, cell: Cell, profile: Path | None, rounds: int) -> list[Sequence[Comparison]]:
    made: Plan = plan(model, Cluster.load(cell.cluster), cell.workload, profile=profile, **cell.options).require("plan")
    modules = [(module, stages.subject.device) for module in stages.of(made)]
    found = profile and read_profile(profile)
    return [compare(made, stages.subject.graph, modules, None, found, quick=profile is None).rows for _ in range(rounds)]


def as_rows(runs: Sequence[Sequence[Comparison]]) -> list[Json]:
    """Every figure: measured over predicted of each round, and what was predicted."""
    return [
        {
            "what": first.what,
            "device": first.device,
            "predicted": first.predicted,
            "ratios": [row.ratio for row in figure],
            "is_within": first.low <= statistics.median(row.ratio for row in figure) <= first.high,
        }
        for figure in zip(*runs)
        for first in figure[:1]
    ]


def profiled(subject: Subject, path: Path, extent: Extent) -> Profile:
    """The profile in the file, gone on with where it ended."""
    begun = read_profile(path) if path.exists() else None
    return profile_model(subject, parse_precisions(MEASURED), extent, lambda found: write_profile(path, found), begun)


def summed_up(rows: Sequence[Json]) -> Json:
    """By figure: medians over rounds of measured over predicted, over cells and stages."""
    found = {}
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        ratios = [statistics.median(row["ratios"]) for row in own]
        low, middle, high = statistics.quantiles(ratios * 2 if len(ratios) == 1 else ratios, n=4, method="inclusive")
        found[what] = {
            "cells": len(own),
            "ratio": middle,
            "quartiles": [low, high],
            "least": min(ratios),
            "most": max(ratios),
            "error": statistics.median(abs(ratio - 1) for ratio in ratios),
            "within": sum(row["is_within"] for row in own),
        }
    return found


def show(result: Json) -> None:
    table = Table("what", "cells", "median ratio", "quartiles", "least, most", "median |error|", "within band")
    for what, own in result["summary"].items():
        low, high = own["quartiles"]
        ends = f"{own['least']:.4f}, {own['most']:.4f}"
        spread, error = f"{low:.3f}-{high:.3f}", f"{own['error']:.1%}"
        table.add_row(what, str(own["cells"]), f"{own['ratio']:.4f}", spread, ends, error, str(own["within"]))
    Console(width=110).print(table)
    if "band" in result:
        Console().print("band: {:.0%} to {:.0%}".format(*result["band"]))


@click.command()
@click.option("--model", default="demo", show_default=True, help="demo, random-2048x16-32k, or a directory.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--precisions", default="16,w8a8,w4a16", show_default=True, help="Uniform precisions.")
@click.option("--seconds", default=170.0, show_default=True, help="No cell is begun after so many.")
@click.option("--memory", is_flag=True, help="Bytes alone, in one round.")
@click.option("--without-kernels", is_flag=True, help="As where there is no C compiler and nothing in the cache.")
@click.option("--work", type=click.Path(path_type=Path), default=WORK, help="Folder of the profile.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="[default: benchmarks/results/validate[-MODEL].json]")
def main(
    model: str, rounds: int, precisions: str, seconds: float, memory: bool, without_kernels: bool, work: Path, path: Path | None
) -> None:
    """Profile, then compare as many cells as the seconds allow; what the JSON file has is not measured again."""
    deadline = time.monotonic() + seconds
    torch.set_num_threads(1)
    is_random = model == LARGE
    folder = work / model
    folder.mkdir(parents=True, exist_ok=True)
    source = str(folder / "model") if is_random else model
    if is_random:
        random_llama(LARGE).save_pretrained(folder / "model")
    name = "validate" + ("" if model == "demo" else f"-{model}") + ("-memory" if memory else "")
    if without_kernels:
        name += "-without-kernels"
        os.environ |= {"PATH": "", "LLMPQ_CACHE": str(folder / "cache")}
    path = path or RESULTS / f"{name}.json"
    subject = subject_of(resolve(source, weights=False), "cpu")
    result: Json = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    result |= {"machine": machine(), "model": model, "rounds": 1 if memory else rounds, "kernels": packed_kernels() is not None}
    file = None if memory else folder / "profile.json"
    if file is not None:
        result["band"] = profiled(subject, file, LONG if is_random else QUICK).band
    stages = RandomStages(subject)
    for cell in cells(model, precisions):
        if cell.name in result["cells"] or time.monotonic() > deadline:
            continue
        asked = source, cell, file, 1 if memory else rounds
        runs = rows_of_random(stages, *asked) if is_random else rows_of_compiled(*asked)
        result["cells"][cell.name] = as_rows([[row for row in run if row.unit == "bytes" or not memory] for run in runs])
        result["summary"] = summed_up([row for rows in result["cells"].values() for row in rows])
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(cell.name, flush=True)
    if result["cells"]:
        show(result)


if __name__ == "__main__":
    main()
