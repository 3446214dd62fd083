"""Quantizers: what they cost in loss, seconds and memory, and whether a killed run ends with the same bytes.

python benchmarks/quantizers.py loss [--only w4a16] | layer | indicators | resume
"""

import hashlib
import json
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import click
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch.fx import GraphModule

from llmpq.checkpoint.loss_increase import Losses, losses_of
from llmpq.checkpoint.quantization_report import QuantizationReport, read_report
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.reference import reference_model
from llmpq.checkpoint.shards import write_shards
from llmpq.evaluation import Estimate, estimate
from llmpq.frontend.build import build_model, trace_model
from llmpq.frontend.models import DEMO, data_path
from llmpq.frontend.texts import CALIBRATE, REPORT, read_tokens
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.plan import Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.precision import PRECISIONS
from llmpq.program import Calibration
from llmpq.quantization.indicators import INDICATORS, raw_shares, table_of
from llmpq.quantization.original import load_original
from llmpq.quantization.quantizers import Gptq, Quantizer, Rounding
from llmpq.quantization.scoring import Measurements
from llmpq.workload import Batch

RESULTS = Path(__file__).parent / "results" / "quantizers.json"
DIRECTORY = data_path("models", DEMO)
TOKENS = 16384  # of the report text
GROUPS = {"w8a16": (128,), "w4a16": (128, 64, 32), "w3a16": (128,), "w8a8": (None,)}
KILLS = 20
RESUME_WINDOWS = 2  # few: what is tested is the resuming, not the result
HIDDEN, VOCABULARY = 2048, 1024
SCORED_LAYERS, SCORED_TOKENS, SCORED = 2, 1024, PRECISIONS["w4a16"]


@dataclass(frozen=True, slots=True)
class Case:
    """A quantizer on the whole demo model: increase of the loss over the original, and over rounding without clipping."""

    precision: str
    group_size: int | None
    quantizer: str
    increase: Estimate
    over_rounding: Estimate | None
    cpu_seconds: float | None
    weight_bytes: int
    smoothed: int


@cache
def traced(directory: Path) -> tuple[GraphModule, LayerGraph]:
    return trace_model(build_model(directory), directory.name)


def planned(graph: LayerGraph, options: tuple[str, ...]) -> Plan:
    """Every layer on one device at these options; what such a plan predicts is not looked at here."""
    stage = Stage("CPU:0", 0, options)
    nothing = (
        Prediction(1.0, 1.0, (), "not predicted"),
        Quality(0.0, None, "not predicted"),
        Optimality(2.0, None, False, "by hand"),
    )
    return Plan(graph.model, "bfloat16", Batch(1, 8, 8), Cluster.load("1xCPU"), (Pipeline((stage,), 1, 1),), *nothing)


def write(directory: Path, out: Path, option: str | tuple[str, ...], quantizer: Quantizer) -> QuantizationReport:
    """The model at one option, or at one for every layer."""
    graph = traced(directory)[1]
    plan = planned(graph, (option,) * graph.num_layers if isinstance(option, str) else option)
    write_shards(out, Checkpoint.open(directory), graph, plan, assets=directory, build={}, quantizer=quantizer)
    return read_report(out)


def gptq(directory: Path, tokens: tuple[int, ...], **values: Any) -> Gptq:
    return Gptq(traced(directory)[0], tokens, CALIBRATE, **values)


@contextmanager
def grouped(option: str, size: int | None) -> Iterator[None]:
    """Inside the block the precision has groups of at most that size."""
    before = PRECISIONS[option]
    PRECISIONS[option] = replace(before, group_size=size)
    try:
        yield
    finally:
        PRECISIONS[option] = before


def quantizers(option: str) -> dict[str, Quantizer]:
    calibrate = read_tokens(DIRECTORY, CALIBRATE)[0]
    found: dict[str, Quantizer] = {"rtn": Rounding(clip=False), "rtn, clipped": Rounding()}
    found["gptq"] = gptq(DIRECTORY, calibrate, smooth=False)
    if PRECISIONS[option].activation_bits < 16:
        found["gptq, smoothed"] = gptq(DIRECTORY, calibrate)
    return found


def difference(left: Losses, right: Losses) -> Estimate:
    pairs = zip(left.windows, right.windows, strict=True)
    return estimate([torch.tensor(mine) - torch.tensor(other) for mine, other in pairs])


def loss_cases(option: str) -> Iterator[Case]:
    """Every quantizer at every group size, each beside rounding without clipping on the same tokens."""
    report = read_tokens(DIRECTORY, REPORT)[0][:TOKENS]
    original = losses_of(load_original(DIRECTORY), report)
    for size in GROUPS[option]:
        rounding: Losses | None = None
        for name, quantizer in quantizers(option).items():
            with TemporaryDirectory() as folder, grouped(option, size):
                out = Path(folder) / "out"
                started = time.process_time()
                told = write(DIRECTORY, out, option, quantizer)
                seconds = round(time.process_time() - started, 2)
                losses = losses_of(reference_model(out), report)
                stored = sum(path.stat().st_size for path in out.glob("*.safetensors"))
            over = None if rounding is None else difference(losses, rounding)
            rounding = rounding or losses
            yield Case(option, size, name, difference(losses, original), over, seconds, stored, len(told.smoothed))


def wide_model(directory: Path, layers: int) -> Path:
    """A Llama of hidden size 2048 with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


def random_tokens(count: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(0)).tolist())


def layer_figures() -> dict[str, Any]:
    """Seconds and memory of one layer with hidden size 2048 and random weights, rounded and by GPTQ."""
    tokens = random_tokens(4096)
    with TemporaryDirectory() as folder:
        directory, found = wide_model(Path(folder) / "model", 1), {}
        for name, quantizer in (
            ("rtn", Rounding()),
            ("gptq", gptq(directory, tokens)),
            ("gptq, spilled", gptq(directory, tokens, limit_bytes=0)),
        ):
            out = Path(folder) / name
            started = cpu_of_children()
            in_process(partial(write, directory, out, "w4a16", quantizer), None)
            told = read_report(out)
            seconds = round(cpu_of_children() - started, 2)
            found[name] = {"cpu_seconds": seconds, **asdict(told.memory), "spilled_bytes": told.spilled_bytes}
    parameters = traced(directory)[1].kind_of(0).parameters
    return {"hidden_size": HIDDEN, "parameters": parameters, "tokens": len(tokens), "precision": "w4a16", "quantizers": found}


def indicator_figures() -> dict[str, Any]:
    """Seconds and peak memory of every indicator on SCORED_LAYERS layers of hidden size 2048, at one precision."""
    tokens, found = random_tokens(SCORED_TOKENS), {}
    with TemporaryDirectory() as folder:
        directory = wide_model(Path(folder) / "model", SCORED_LAYERS)
        for indicator in (name for name in INDICATORS if name != "random"):
            file = Path(folder) / f"{indicator}.json"
            in_process(partial(score, directory, tokens, indicator, file), None, "spawn")
            found[indicator] = json.loads(file.read_text())
    sizes = {"hidden_size": HIDDEN, "layers": SCORED_LAYERS, "tokens": SCORED_TOKENS, "precision": SCORED.name}
    return {**sizes, "indicators": found}


def score(directory: Path, tokens: tuple[int, ...], indicator: str, file: Path) -> None:
    """Writes CPU seconds per layer of the indicator's figures alone, of the whole table, and the process's peak memory.

    The model is loaded and the original's predictions are there before: every indicator needs them.
    """
    os.environ["LLMPQ_CACHE"] = str(file.with_suffix(""))
    measured = Measurements.of(traced(directory)[1], Calibration(directory, tokens, "random tokens"))
    assert len(measured.base) > 0
    loaded, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time()
    raw_shares(indicator, measured, [SCORED])
    figures = time.process_time() - started
    table_of(indicator, measured, [SCORED])
    whole, peak = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"figures_s": figures / SCORED_LAYERS, "table_s": whole / SCORED_LAYERS, "loaded_bytes": loaded, "peak_bytes": peak}
    file.write_text(json.dumps(found))


def digest(out: Path) -> str:
    """Of every file but build.json, which holds durations."""
    files = sorted(path for path in out.iterdir() if path.name != "build.json")
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def kill_figures() -> dict[str, Any]:
    """Killed at moments drawn evenly over the time of an undisturbed run, then run again to the end."""
    quantizer = gptq(DIRECTORY, read_tokens(DIRECTORY, CALIBRATE)[0], count=RESUME_WINDOWS)
    moments, runs = random.Random(0), []
    with TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        started = time.perf_counter()
        in_process(partial(write, DIRECTORY, undisturbed, "w4a16", quantizer), None)
        whole = time.perf_counter() - started
        for kill in range(KILLS):
            out, after = Path(folder) / f"out-{kill}", moments.uniform(0, whole)
            work = partial(write, DIRECTORY, out, "w4a16", quantizer)
            killed = in_process(work, after)
            in_process(work, None)
            runs.append(
                {
                    "after_s": round(after, 2),
                    "killed": killed,
                    "resumed_layers": read_report(out).resumed,
                    "same_bytes": digest(out) == digest(undisturbed),
                }
            )
        left = sorted(path.name for path in Path(folder).iterdir() if path.name.startswith("."))
    return {"windows": RESUME_WINDOWS, "undisturbed_s": round(whole, 2), "runs": runs, "left_behind": left}


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_process(work: Any, kill_after: float | None, method: Literal["fork", "spawn"] = "fork") -> bool:
    """Runs `work` in a process of its own; whether it was killed after that many seconds, before it ended by itself.

    What loads a model by transformers is spawned: its loading threads do not survive a fork.
    """
    process = multiprocessing.get_context(method).Process(target=work)
    process.start()
    process.join(kill_after)
    alive = process.is_alive()
    if alive:
        process.kill()
        process.join()
    return alive


def keep(section: str, value: Any) -> None:
    """Writes one section of the results; the others stay."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(
        json.dumps({**results, section: {"machine": machine(), "load_average": os.getloadavg(), **value}}, indent=1) + "\n"
    )


def show(cases: list[dict[str, Any]]) -> None:
    table = Table(title="demo model, report text: nats per token")
    for column in ("precision", "groups", "quantizer", "increase", "over rtn", "standard errors", "CPU s", "MB"):
        table.add_column(column, justify="right")
    for case in cases:
        over = case["over_rounding"]
        ratio = "" if over is None else f"{over['mean'] / over['error']:+.1f}"
        cells = (
            case["precision"],
            str(case["group_size"] or "row"),
            case["quantizer"],
            shown(case["increase"]),
            "" if over is None else shown(over),
        )
        table.add_row(*cells, ratio, f"{case['cpu_seconds'] or float('nan'):.1f}", f"{case['weight_bytes'] / 1e6:.2f}")
    Console(width=130).print(table)


def shown(value: dict[str, Any]) -> str:
    return f"{value['mean']:+.4f} ± {value['error']:.4f}"


@click.group()
def main() -> None:
    """What quantizers cost, and whether a killed run ends with the same bytes."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@main.command()
@click.option("--only", type=click.Choice(tuple(GROUPS)), help="This precision alone; the results of the others stay.")
def loss(only: str | None) -> None:
    """Increase of the loss on the demo model's report text, at every precision and group size."""
    known = json.loads(RESULTS.read_text()).get("loss", {}).get("cases", []) if RESULTS.exists() else []
    for option in GROUPS if only is None else (only,):
        known = [case for case in known if case["precision"] != option] + [asdict(case) for case in loss_cases(option)]
        keep("loss", {"tokens": TOKENS, "cases": sorted(known, key=lambda case: list(GROUPS).index(case["precision"]))})
    show(known)


@main.command()
def layer() -> None:
    """Seconds and memory of one layer of hidden size 2048."""
    found = layer_figures()
    keep("layer", found)
    Console().print_json(json.dumps(found))


@main.command()
def indicators() -> None:
    """CPU seconds per layer and peak memory of every indicator, hidden size 2048."""
    found = indicator_figures()
    keep("indicators", found)
    Console().print_json(json.dumps(found))


@main.command("resume")
def resume_after_kills() -> None:
    """Twenty kills, twenty times the same bytes."""
    found = kill_figures()
    keep("resume", found)
    same = sum(run["same_bytes"] for run in found["runs"])
    Console().print(
        f"{same} of {len(found['runs'])} killed runs ended with the undisturbed bytes; left behind: {found['left_behind']}"
    )


if __name__ == "__main__":
    main()
