"""The plan on our own runtime over unlike devices, beside every baseline: measured, predicted, and when each stage is busy.

python benchmarks/hetero_runtime.py prepare     model, sensitivity; with --profile SECONDS a profile, alone on the machine
python benchmarks/hetero_runtime.py plans       llmpq's and every baseline's, by the profile
python benchmarks/hetero_runtime.py run         alone; what is in the JSON already is not measured again
python benchmarks/hetero_runtime.py table

Devices are processes, one thread each, slowed to their share of a core (benchmarks/hetero/clusters, `hetero.warm.Pace`), warm
between plans. Everybody has the loss of uniform w8a8 as quality budget. llmpq and the best by hand run in turns.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import exp, fsum, log
from pathlib import Path
from statistics import median
from typing import Any

import click
from hetero.gantt import beginning, busy, drawing
from hetero.prepared import Prepared
from hetero.warm import Outcome, Recorded, WarmDevices, key_of, warm_devices
from machine import machine
from rich.console import Console
from rich.table import Table

from llmpq.backends.simulator import SimulatorBackend
from llmpq.compiler import plan
from llmpq.errors import InfeasibleError
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Plan
from llmpq.profiling.profile_file import read_profile, write_profile
from llmpq.runtime.simulate import Span
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import dumps, loads
from llmpq.workload import Batch

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "hetero_runtime.json"
CLUSTERS = ROOT / "hetero" / "clusters"
NAMES = ("four-to-one", "two-to-one", "one-to-one", "slow-link", "four-two-one")  # not unlike-instructions: see docs/runtime.md
BATCH = Batch(8, 64, 24)
PRECISIONS, BUDGET_OF = "16,w8a8,w4a16", "w8a8"
BASELINES = ("hand", "even", "fastest", "uniform", "pipeedge", "adabits", "transfer")
TURNS = 3  # of llmpq and the best by hand
PROFILE_S = 90.0
DRAWN = 22  # actions of every stage in a chart
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Inputs(Prepared):
    """What `prepare` made, and what every plan is asked for."""

    def options(self) -> Json:
        return {
            "precisions": PRECISIONS,
            "sensitivity": self.sensitivity,
            "profile": self.profile,
            "sensitivity_budget": self.budget() * (1 + 1e-9),
        }

    def budget(self) -> float:
        table = loads(SensitivityTable, self.sensitivity.read_text("utf-8"), "sensitivity.json")
        return table.total((BUDGET_OF,) * len(table.rows))


@dataclass(frozen=True, slots=True)
class Named:
    """A plan and who made it: llmpq, or one or more baselines that agree; what is known of it before it runs."""

    names: tuple[str, ...]
    plan: Plan
    simulated_s: float
    simulated_busy: tuple[float, ...]
    spans: tuple[Span, ...]


def take_profile(inputs: Inputs, seconds: float) -> None:
    """Of this machine, alone and beside a neighbour that is busy as other stages are; one that was begun is gone on with."""
    from llmpq.frontend.models import resolve
    from llmpq.precision import parse_precisions
    from llmpq.profiling.neighbour import measure_beside
    from llmpq.profiling.profiler import profile_model, subject_of
    from llmpq.profiling.sizes import Extent

    extent = Extent((1, 2, 4, 8), (BATCH.prompt_len,), (BATCH.prompt_len, BATCH.kv_len), 512, seconds)
    begun = read_profile(inputs.profile) if inputs.profile.exists() else None
    subject = subject_of(resolve(str(inputs.model), weights=False), "cpu")
    asked, keep = (subject, parse_precisions(PRECISIONS), extent), partial(write_profile, inputs.profile)
    measure_beside(profile_model(*asked, keep, begun), *asked, str(inputs.model), keep)


def plans_of(name: str, inputs: Inputs) -> tuple[Named, ...]:
    """llmpq's plan first, then those of the baselines that differ; made once."""
    path = inputs.folder / f"plans-{name}.json"
    if not path.exists():
        path.write_text(dumps(tuple(_made(Cluster.load(CLUSTERS / f"{name}.yaml"), inputs))), "utf-8")
    return loads(tuple[Named, ...], path.read_text("utf-8"), path.name)


def _made(cluster: Cluster, inputs: Inputs) -> Iterator[Named]:
    """A baseline without a plan is told."""
    asked, profile = (str(inputs.model), cluster, BATCH), read_profile(inputs.profile)
    made = {"llmpq": plan(*asked, **inputs.options())}
    for name in BASELINES:
        try:
            made[f"assign-{name}"] = plan(*asked, **inputs.options(), assign=f"assign-{name}")
        except InfeasibleError as error:
            click.echo(f"{cluster.name}: assign-{name}: {error.reasons[0]}", err=True)
    plans = {name: program.require("plan") for name, program in made.items()}
    for key in dict.fromkeys(map(key_of, plans.values())):
        names = tuple(name for name, own in plans.items() if key_of(own) == key)
        found = SimulatorBackend(plans[names[0]], made[names[0]].graph, profile).run()
        yield Named(names, plans[names[0]], found.seconds, found.busy, found.spans)


def measure(devices: WarmDevices, named: Sequence[Named]) -> Iterator[tuple[Named, Outcome, tuple[Recorded, ...]]]:
    """Every plan once; llmpq's and the best by hand TURNS times, in turns."""
    chosen = [one for one in named if {"llmpq", "assign-hand"} & set(one.names)]
    for turn in range(TURNS):
        for one in chosen if turn else named:
            outcomes, recorded = devices.record(one.plan, 1)
            yield one, outcomes[0], recorded


def measure_cluster(name: str, inputs: Inputs, charts: Path) -> Json:
    """What the JSON has of a cluster; the chart of llmpq's last run goes to `charts`."""
    cluster, named = Cluster.load(CLUSTERS / f"{name}.yaml"), plans_of(name, inputs)
    shares = {device.name: device.speed for device in cluster.devices}
    link = cluster.within_host.bandwidth_bytes_per_s if name == "slow-link" else None
    rows = {key_of(one.plan): _row(one) for one in named}
    with warm_devices(inputs.model, shares, link) as devices:
        for one, outcome, recorded in measure(devices, named):
            row, spans = rows[key_of(one.plan)], _measured_spans(recorded)
            row["runs"].append(asdict(outcome))
            row["busy"] = [round(share, 3) for share in busy(spans, len(one.plan.stages), outcome.seconds)]
            click.echo(f"{name}: {', '.join(one.names)}: {outcome.seconds:.2f} s ({row['predicted_s']:.2f})", err=True)
            if "llmpq" in one.names:
                draw(one, spans, charts / f"hetero_runtime-{name}.svg")
    return {"rows": list(rows.values())}


def _row(one: Named) -> Json:
    return {
        "names": list(one.names),
        "plan": key_of(one.plan),
        "sensitivity": one.plan.quality.sensitivity,
        "predicted_s": one.plan.prediction.latency_s,
        "simulated_s": one.simulated_s,
        "simulated_busy": [round(share, 3) for share in one.simulated_busy],
        "runs": [],
    }


def draw(one: Named, measured: Sequence[Span], path: Path) -> None:
    """The beginning of a run: every prefill, some rounds of decode."""
    charts = {"predicted": beginning(one.spans, DRAWN), "measured": beginning(measured, DRAWN)}
    path.write_text(drawing(charts, [stage.device for stage in one.plan.stages]) + "\n", "utf-8")


def _measured_spans(recorded: Sequence[Recorded]) -> list[Span]:
    """Sending is beside computing, on a thread of its own, and not among them."""
    return [Span(each.stage, each.action, each.start_s, each.end_s, each.end_s) for each in recorded]


def summary(found: Json) -> Json:
    """gain: geometric mean of llmpq over every baseline; error: median of |predicted / measured - 1| over all plans."""
    errors, gains = [], dict[str, list[float]]()
    for state in found["clusters"].values():
        seconds = {name: _seconds(row) for row in state["rows"] for name in row["names"]}
        errors += [abs(row["predicted_s"] / _seconds(row) - 1) for row in state["rows"]]
        for name, value in seconds.items():
            if name != "llmpq":
                gains.setdefault(name, []).append(value / seconds["llmpq"])
    means = {name: exp(fsum(map(log, ratios)) / len(ratios)) for name, ratios in gains.items()}
    return {"error": median(errors), "largest_error": max(errors), "gain": means, "clusters": len(found["clusters"])}


def _seconds(row: Json) -> float:
    return float(median(run["seconds"] for run in row["runs"]))


def show(found: Json) -> None:
    table = Table(
        "cluster", "plan of", "layers and precisions", "tokens/s", "spread", "llmpq is", "predicted", "busy", "simulated"
    )
    for name, state in found["clusters"].items():
        best = next(_seconds(row) for row in state["rows"] if "llmpq" in row["names"])
        for row in sorted(state["rows"], key=_seconds):
            rates = [BATCH.batch_size * BATCH.gen_len / run["seconds"] for run in row["runs"]]
            table.add_row(
                name,
                ", ".join(each.removeprefix("assign-") for each in row["names"]),
                row["plan"],
                f"{median(rates):.1f}",
                f"{min(rates):.1f}-{max(rates):.1f}",
                f"{_seconds(row) / best:.2f}x",
                f"{row['predicted_s'] / _seconds(row):.2f}",
                *(" ".join(f"{share:.0%}" for share in row[shares]) for shares in ("busy", "simulated_busy")),
            )
        table.add_section()
    Console(width=190, file=sys.stdout).print(table)
    if found["clusters"]:
        Console().print(summary(found))


def _read(path: Path) -> Json:
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {"clusters": {}}


FOLDER = click.option("--folder", type=click.Path(path_type=Path), default=Path("out/hetero-runtime"), show_default=True)
JSON_FILE = click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS, show_default=RESULTS.name)


@click.group()
def main() -> None:
    """See the module's docstring."""
    os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error"})


@main.command()
@FOLDER
@click.option("--profile", "seconds", type=float, help="Take the profile as well, in about so many seconds.")
def prepare(folder: Path, seconds: float | None) -> None:
    """What is there already is kept."""
    from vllm_hetero import save_model

    inputs = Inputs(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not inputs.model.exists():
        save_model(inputs.model)
    if not inputs.sensitivity.exists():
        arguments = ("--indicator", "fisher", "--precisions", PRECISIONS, "-o", inputs.sensitivity)
        subprocess.run([sys.executable, "-m", "llmpq", "sensitivity", inputs.model, *arguments], check=True)
    if seconds is not None:
        take_profile(inputs, seconds)


@main.command()
@FOLDER
@click.option("--cluster", "names", multiple=True, type=click.Choice(NAMES), default=NAMES)
def plans(folder: Path, names: Sequence[str]) -> None:
    """Plan every cluster by the profile; what is there already is kept."""
    for name in names:
        for one in plans_of(name, Inputs(folder)):
            click.echo(f"{name}: {', '.join(one.names)}: {one.plan.prediction.latency_s:.2f} s: {key_of(one.plan)}")


@main.command()
@FOLDER
@JSON_FILE
@click.option("--cluster", "names", multiple=True, type=click.Choice(NAMES), default=NAMES)
@click.option("--seconds", type=float, help="Begin no cluster after so long.")
def run(folder: Path, path: Path, names: Sequence[str], seconds: float | None) -> None:
    """Measure; a profile and plans are made first where there are none."""
    import torch

    torch.set_num_threads(1)
    started, found, inputs = time.monotonic(), _read(path), Inputs(folder)
    if not inputs.profile.exists():
        take_profile(inputs, PROFILE_S)
    found["machine"] = machine()
    for name in names:
        if name in found["clusters"] or (seconds is not None and time.monotonic() - started > seconds):
            continue
        found["clusters"][name] = measure_cluster(name, inputs, path.parent)
        found["summary"] = summary(found)
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        click.echo(f"{name}: {time.monotonic() - started:.0f} s", err=True)
    show(found)


@main.command(name="table")
@JSON_FILE
def print_table(path: Path) -> None:
    """Print what was measured."""
    show(_read(path))


if __name__ == "__main__":
    main()
