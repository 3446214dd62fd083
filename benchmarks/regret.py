"""Decision regret: measured throughput of the chosen plan against its measured neighbours, on processes of unlike speed.

OMP_NUM_THREADS=1 python benchmarks/regret.py profile          a profile of this machine, for a random-weight Llama
OMP_NUM_THREADS=1 python benchmarks/regret.py speeds           a first plan of every cell, run: how fast its devices are by that
OMP_NUM_THREADS=1 python benchmarks/regret.py plans            every cell's plan, 20 neighbours and all baselines
OMP_NUM_THREADS=1 python benchmarks/regret.py measure [--seconds 170] [--cells 12]     what the seconds allow; call it again
python benchmarks/regret.py summary

A cell is a cluster of processes that are worth shares of a core, and a batch. Every plan runs on our own runtime, a process per
device, each of whose actions ends when it would with its share of a core (`hetero.warm.Pace`). The profile is taken in rounds,
alone and beside a neighbour that is busy as other stages are; first plans by it are run and correct the speeds of the cluster,
as `llmpq validate` corrects a profile. The chosen plan and the best neighbours are measured again in turns; so is the same plan
with equal devices exchanged, which is as good as the chosen one: how far it comes out apart is the floor.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
from hetero.neighbours import neighbours
from hetero.rounds import take_rounds
from hetero.warm import WarmDevices, key_of, warm_devices
from machine import machine
from rich.console import Console
from rich.table import Table

from llmpq.backends.simulator import SimulatorBackend
from llmpq.compiler import plan, prepare
from llmpq.errors import InfeasibleError
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Plan
from llmpq.profiling.link import measure_link
from llmpq.profiling.messages import measure_message
from llmpq.profiling.profile_file import read_profile, write_profile
from llmpq.profiling.sizes import Extent
from llmpq.serialize import from_json, to_json
from llmpq.workload import Batch

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "regret.json"
WORK = Path(".regret")
HIDDEN, LAYERS, VOCABULARY = 1280, 12, 4096
SHARES = {"1:1": (0.75, 0.75), "2:1": (1.0, 0.5), "4:1": (1.0, 0.25), "4:2:1": (0.8, 0.4, 0.2)}
WORKLOADS = {"prefill-heavy": Batch(4, 96, 5), "balanced": Batch(8, 48, 9), "decode-heavy": Batch(8, 16, 17)}
PRECISIONS = ("16,w8a8,w8a16,w4a16", "16,w8a16,w4a16")  # in turn over the cells
BASELINES = ("hand", "even", "fastest", "uniform", "pipeedge", "adabits", "transfer")
PROFILE_ROUNDS = 3
NEIGHBOURS = 20
FINALISTS = 3  # that are measured again beside the chosen plan
ROUNDS, RUNS = 3, 2  # turns of each of these, runs of a turn
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """`memory`: MiB of each device, less than the model has at 16 bits."""

    cluster: str
    workload: str
    precisions: str

    @property
    def name(self) -> str:
        return f"{self.cluster} {self.workload}"

    @property
    def file(self) -> str:
        return f"{self.name.replace(' ', '_').replace(':', '-')}.json"

    @property
    def shares(self) -> dict[str, float]:
        return {f"CPU:{index}": share for index, share in enumerate(SHARES[self.cluster])}

    def spec(self, worth: dict[str, float]) -> Cluster:
        """worth: of a share of a device, 1 where it is not there."""
        devices = [
            f"  - {{type: CPU, memory: {60 + round(160 * share)} MiB, speed: {share * worth.get(name, 1.0)}, host: a}}"
            for name, share in self.shares.items()
        ]
        return Cluster.from_yaml("\n".join([f"name: '{self.cluster}'", "devices:", *devices]), self.name)


def cells() -> Iterator[Cell]:
    for c, cluster in enumerate(SHARES):
        for w, workload in enumerate(WORKLOADS):
            yield Cell(cluster, workload, PRECISIONS[(c + w) % 2])


def write_model(folder: Path) -> None:
    """The configuration alone: weights are random wherever they are needed."""
    from transformers import LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 11 // 4 // 128 * 128,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        num_key_value_heads=HIDDEN // 128,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        eos_token_id=None,
        bos_token_id=None,
        dtype="bfloat16",
    ).save_pretrained(folder)


def plans_of(cell: Cell, work: Path) -> list[Json]:
    """The chosen plan, its neighbours and the baselines that differ from all of them."""
    asked, options = request(cell, work, read(work / "speeds.json").get(cell.cluster, {}))
    chosen = plan(*asked, **options).require("plan")
    program = prepare(*asked, **options)
    found: list[tuple[str, Plan]] = [("chosen", chosen)]
    found += [(neighbour.kind, neighbour.plan) for neighbour in neighbours(program, chosen, NEIGHBOURS)]
    for name in BASELINES:
        try:
            found.append((f"assign-{name}", plan(*asked, **options, assign=f"assign-{name}").require("plan")))
        except InfeasibleError as error:
            print(f"{cell.name}: assign-{name}: {error.reasons[0]}")
    return [{"kind": kind, "plan": to_json(made)} for kind, made in found]


def request(cell: Cell, work: Path, worth: dict[str, float]) -> tuple[tuple[str, Cluster, Batch], Json]:
    """What llmpq.plan takes."""
    options = {"precisions": cell.precisions, "indicator": "prior", "profile": work / "profile.json"}
    return (str(work / "model"), cell.spec(worth), WORKLOADS[cell.workload]), options


def worth_in(devices: WarmDevices, cell: Cell, work: Path) -> dict[str, float]:
    """Of each device that a first plan of the cell uses: seconds that its actions were predicted to take over those they took."""
    asked, options = request(cell, work, {})
    program = plan(*asked, **options)
    made = program.require("plan")
    profile = read_profile(work / "profile.json")
    predicted = SimulatorBackend(made, program.graph, profile).run().spans
    taken = [each for _ in range(RUNS) for each in devices.record(made, 1)[1]]
    found = {}
    for index, stage in enumerate(made.stages):
        own = [span for span in predicted if span.stage == index]
        messages_s = len(own) * profile.message_cpu_s / made.cluster.device(stage.device).speed if len(made.stages) > 1 else 0.0
        expected_s = messages_s + sum(span.computed_s - span.start_s for span in own)
        found[stage.device] = RUNS * expected_s / sum(each.end_s - each.start_s for each in taken if each.stage == index)
    return found


def read(path: Path) -> Json:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write(path: Path, value: Json) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


def twin_key(cell: Cell, made: Plan) -> str:
    """The key of a plan whatever its devices are called: equal devices may be exchanged."""
    key, shares = key_of(made), cell.shares
    for name in shares:
        key = key.replace(name, f"CPU of {shares[name]}")
    return key


def finalists(cell: Cell, made: dict[str, Plan], chosen: str, runs: dict[str, list[Json]]) -> tuple[str, ...]:
    """What is measured in turns: the chosen plan, its twins, and the fastest of the others by one run."""
    twins = [key for key in made if key != chosen and twin_key(cell, made[key]) == twin_key(cell, made[chosen])]
    others = sorted((key for key in made if key != chosen and key not in twins), key=lambda key: runs[key][0]["seconds"])
    return (chosen, *twins[:1], *others[:FINALISTS])


def measure_cell(
    devices: WarmDevices, cell: Cell, entries: list[Json], runs: dict[str, list[Json]], deadline: float, keep: Any
) -> bool:
    """Every plan of the cell once, then the finalists ROUNDS times more in turns; whether all is."""
    made = {key_of(found): found for found in (from_json(Plan, entry["plan"]) for entry in entries)}
    for key in made:
        if key not in runs:
            if time.monotonic() > deadline:
                return False
            runs[key] = [asdict(outcome) for outcome in devices.measure(made[key], 1)]
            keep()
    last = finalists(cell, made, key_of(from_json(Plan, entries[0]["plan"])), runs)
    while min(len(runs[key]) for key in last) <= ROUNDS * RUNS:
        for key in sorted(last, key=lambda key: len(runs[key])):
            if time.monotonic() > deadline:
                return False
            runs[key] += [asdict(outcome) for outcome in devices.measure(made[key], RUNS)]
            keep()
    return True


@click.group()
@click.option("--work", type=click.Path(path_type=Path), default=WORK, help="Folder of the profile and of the plans.")
@click.pass_context
def main(context: click.Context, work: Path) -> None:
    """Profile, plan, measure, sum up."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    work.mkdir(parents=True, exist_ok=True)
    context.obj = work


@main.command()
@click.option("--seconds", default=100.0, show_default=True, help="Of each round, alone and as many beside a neighbour.")
@click.pass_obj
def profile(work: Path, seconds: float) -> None:
    """Measure this machine, alone."""
    import torch

    torch.set_num_threads(1)
    write_model(work / "model")
    extent = Extent((1, 2, 4, 8), (16, 64, 128), (16, 64, 128), 512, seconds)
    link, message_cpu_s = measure_link(), measure_message(HIDDEN)  # by processes that wait for nothing else
    taken = take_rounds(work / "model", PRECISIONS[0], extent, PROFILE_ROUNDS, work / "profile.json")
    found = replace(taken, link=link, message_cpu_s=message_cpu_s)
    write_profile(work / "profile.json", found)
    print(f"{len(found.points)} points, band {found.band[0]:.0%} to {found.band[1]:.0%}, link {found.link}")


@main.command()
@click.pass_obj
def speeds(work: Path) -> None:
    """Measure, alone, what the devices' shares are worth: the median over the cells of a cluster."""
    found: dict[str, dict[str, float]] = read(work / "speeds.json")
    for cluster in (name for name in SHARES if name not in found):
        own = [cell for cell in cells() if cell.cluster == cluster]
        with warm_devices(work / "model", own[0].shares) as devices:
            each = [worth_in(devices, cell, work) for cell in own]
        known = {name: [worth[name] for worth in each if name in worth] for name in own[0].shares}
        found[cluster] = {name: median(values) for name, values in known.items() if values}
        write(work / "speeds.json", found)
        print(cluster, {name: [round(value, 2) for value in values] for name, values in known.items()}, flush=True)


@main.command()
@click.option("--only", default="", help="Part of a cell's name.")
@click.pass_obj
def plans(work: Path, only: str) -> None:
    """Plan every cell by the profile."""
    for cell in cells():
        file = work / cell.file
        if only in cell.name and not file.exists():
            entries = plans_of(cell, work)
            write(file, {"cell": asdict(cell), "entries": entries})
            print(cell.name, len(entries), "plans:", key_of(from_json(Plan, entries[0]["plan"])), flush=True)


@main.command()
@click.option("--seconds", default=170.0, show_default=True)
@click.option("--cells", "most", default=len(SHARES) * len(WORKLOADS), show_default=True, help="At most so many more.")
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
@click.pass_obj
def measure(work: Path, seconds: float, most: int, path: Path) -> None:
    """Measure, alone, as many plans as the seconds allow."""
    deadline, result = time.monotonic() + seconds, read(path)
    result["machine"] = machine()
    runs = result.setdefault("runs", {})
    for cluster in SHARES:
        todo = [cell for cell in cells() if cell.cluster == cluster]
        done = result.setdefault("done", [])
        if all(cell.name in done for cell in todo) or time.monotonic() > deadline or most < 1:
            continue
        with warm_devices(work / "model", todo[0].shares) as devices:
            for cell in (cell for cell in todo if cell.name not in done and most > 0):
                entries = read(work / cell.file)["entries"]
                own = runs.setdefault(cell.name, {})
                if measure_cell(devices, cell, entries, own, deadline, lambda: write(path, result)):
                    most -= 1
                    done.append(cell.name)
                    write(path, result)
                    print(cell.name, "done", flush=True)


@main.command()
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
@click.pass_obj
def summary(work: Path, path: Path) -> None:
    """What was measured so far, cell by cell."""
    result = read(path)
    rows = [
        sum_up(cell, read(work / cell.file)["entries"], result["runs"][cell.name])
        for cell in cells()
        if cell.name in result["done"]
    ]
    result["cells"] = rows
    result["summary"] = {
        "cells": len(rows),
        "regret": _spread([row["regret"] for row in rows]),
        "regret_by_one_run": _spread([row["regret_by_one_run"] for row in rows]),
        "error": _spread([abs(plan["measured_s"] / plan["predicted_s"] - 1) for row in rows for plan in row["plans"]]),
        "noise": _spread([row["noise"] for row in rows]),
        "twin": _spread([abs(row["twin"]) for row in rows if row["twin"] is not None] or [0.0]),
    }
    write(path, result)
    table = Table("cell", "chosen plan", "tokens/s", "regret", "by one run", "noise", "twin", "error", "best baseline", "busy")
    for row in rows:
        best = min(row["baselines"], key=lambda name: row["baselines"][name])
        table.add_row(
            row["cell"],
            row["chosen"],
            f"{row['tokens_per_s']:.1f}",
            *(f"{row[name]:.1%}" for name in ("regret", "regret_by_one_run", "noise")),
            "" if row["twin"] is None else f"{row['twin']:+.1%}",
            f"{row['error']:.1%}",
            f"{best}: {row['baselines'][best]:.2f} times as fast",
            " ".join(f"{share:.0%}" for share in row["busy"].values()),
        )
    Console(width=200).print(table)
    Console().print(result["summary"])


def sum_up(cell: Cell, entries: list[Json], runs: dict[str, list[Json]]) -> Json:
    """A cell: the chosen plan against its neighbours and the baselines.

    regret: by medians of the runs in turns, against the best of the neighbours that were run again, which were chosen by a run
    that does not count; twins of the chosen plan are left out. twin: how much longer than the chosen plan its twin took, which
    is as good; None: it has none. regret_by_one_run: by the first run of each, where the best of twenty is best by luck too.
    baselines: tokens per second of the chosen plan over theirs, by the first run. error: median of |measured / predicted - 1|.
    noise: median distance of a run in turns from the median of its plan. busy: share of the time that each device was at work.
    """
    plans = [(entry["kind"], from_json(Plan, entry["plan"])) for entry in entries]
    workload, (_, chosen) = WORKLOADS[cell.workload], plans[0]
    again = {key: median(run["seconds"] for run in found[1:]) for key, found in runs.items() if len(found) > 1}
    once = {key: found[0]["seconds"] for key, found in runs.items()}
    own = key_of(chosen)
    near = {key_of(plan): plan for kind, plan in plans if not kind.startswith("assign-")}
    twins = {key for key, plan in near.items() if key != own and twin_key(cell, plan) == twin_key(cell, chosen)}
    others = near.keys() - twins - {own}
    deviations = [abs(run["seconds"] / again[key] - 1) for key in again for run in runs[key][1:]]
    measured = [
        {
            "kind": kind,
            "plan": key_of(plan),
            "predicted_s": plan.prediction.latency_s,
            "measured_s": again.get(key_of(plan), once[key_of(plan)]),
        }
        for kind, plan in plans
    ]
    return {
        "cell": cell.name,
        "precisions": cell.precisions,
        "chosen": own,
        "tokens_per_s": workload.batch_size * workload.gen_len / again[own],
        "regret": max(0.0, 1 - min(again[key] for key in others & again.keys()) / again[own]),
        "regret_by_one_run": max(0.0, 1 - min(once[key] for key in others) / once[own]),
        "noise": median(deviations),
        "twin": min((again[key] / again[own] - 1 for key in twins & again.keys()), default=None),
        "error": median(abs(plan["measured_s"] / plan["predicted_s"] - 1) for plan in measured),
        "baselines": {kind: once[key_of(plan)] / once[own] for kind, plan in plans if kind.startswith("assign-")},
        "busy": {name: median(run["utilisation"][name] for run in runs[own]) for name in runs[own][0]["utilisation"]},
        "plans": measured,
    }


def _spread(values: list[float]) -> Json:
    return {"median": median(values), "mean": fmean(values), "largest": max(values)}


if __name__ == "__main__":
    main()
