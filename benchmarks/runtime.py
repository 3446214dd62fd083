"""The own runtime beside transformers' generate and vLLM on CPU: prefill and decode tokens per second, in turns in one run.

python benchmarks/runtime.py prepare      a random Llama of hidden size 2048 x 16 layers, models at every precision, vLLM's code
python benchmarks/runtime.py run          alone on the machine; what is in the JSON already is not measured again
python benchmarks/runtime.py table

One thread each. At every precision ours and vLLM's model take turns with transformers' in 16 bits. Greedy, no end of sequence.
Prefill ends when every sequence has its first token, decode is the rest. Medians with quartiles. vLLM: `make engines`.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import click
from machine import machine
from random_llama import SMALL, random_llama
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "runtime.json"
VLLM_PYTHON = HERE.parent / ".engines" / "bin" / "python"
SERVED_BY = HERE / "vllm_tokens.py"
PLUGIN, PLUGIN_NAME = HERE.parent / "backends" / "vllm_plugin.py", "llmpq_vllm_plugin.py"
PRECISIONS = ("16", "w8a8", "w4a16", "w8a16")
ENGINES = ("transformers", "llmpq", "vllm")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error"}
KV_BYTES = 256 << 20
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """`batch` prompts of `prompt_len` tokens, each continued by `new_tokens`."""

    batch: int
    prompt_len: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Subject:
    """`rounds`: turns of every cell, after one that does not count."""

    name: str
    cells: tuple[Cell, ...]
    rounds: int


SUBJECTS = (
    Subject(SMALL, (Cell(1, 64, 9), Cell(4, 64, 9), Cell(16, 32, 9)), 3),
    Subject("demo", (Cell(1, 64, 33), Cell(4, 64, 33), Cell(16, 64, 33)), 7),
)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds until every sequence had its first token, and until the last one came."""

    first_s: float
    whole_s: float


Generate = Callable[[Sequence[Sequence[int]], int], Times]


def save_random_llama(folder: Path) -> None:
    """Made in 16 bits from the start: never more than the model itself in memory."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(random_llama(SMALL)).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)


def source_of(subject: Subject, folder: Path) -> Path:
    from llmpq.frontend.models import resolve

    if subject.name != "demo":
        return folder / "model"
    demo = resolve("demo", weights=True).directory
    assert demo is not None
    return demo


def compiled_at(subject: Subject, precision: str, folder: Path) -> Path:
    return folder / f"{subject.name}-{precision}"


def compile_at(subject: Subject, precision: str, folder: Path) -> None:
    import llmpq

    largest = max(subject.cells, key=lambda cell: cell.batch * (cell.prompt_len + cell.new_tokens))
    workload = llmpq.Batch(largest.batch, largest.prompt_len, largest.new_tokens)
    options: Json = {"quantizer": "rtn", "indicator": "prior", "quality_check": False, "theta": 0.0}
    out = compiled_at(subject, precision, folder)
    llmpq.compile(source_of(subject, folder), "1xCPU", workload, out=out, precisions=(precision,), **options)


@contextmanager
def by_transformers(source: Path) -> Iterator[Generate]:
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    class Clock(StoppingCriteria):
        """Asked after every token whether to stop."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.eval()

    @torch.inference_mode()
    def generate(prompts: Sequence[Sequence[int]], new_tokens: int) -> Times:
        clock, start = Clock(), time.perf_counter()
        ids, criteria = torch.tensor(prompts), StoppingCriteriaList([clock])
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, stopping_criteria=criteria, **length)
        return Times(clock.times[0] - start, time.perf_counter() - start)

    yield generate


@contextmanager
def by_us(out: Path) -> Iterator[Generate]:
    import llmpq
    from llmpq.generation import SamplingParams

    backend = llmpq.load(out).backend

    def generate(prompts: Sequence[Sequence[int]], new_tokens: int) -> Times:
        first: dict[int, float] = {}

        def note(row: int, token: int) -> None:
            first.setdefault(row, time.perf_counter())

        start = time.perf_counter()
        backend.generate(prompts, SamplingParams(max_new_tokens=new_tokens), note)
        return Times(max(first.values()) - start, time.perf_counter() - start)

    yield generate


@contextmanager
def by_vllm(model: Path, cells: Sequence[Cell], eager: bool, log: Path) -> Iterator[Generate]:
    """vLLM in a process of its own, without a process for its engine; it waits on its input while others have their turn."""
    asked = {
        "folder": str(model),
        "eager": eager,
        "longest": max(cell.prompt_len + cell.new_tokens for cell in cells),
        "sequences": max(cell.batch for cell in cells),
        "tokens": max(cell.batch * cell.prompt_len for cell in cells),
        "kv_bytes": KV_BYTES,
    }
    with TemporaryDirectory(prefix="llmpq-runtime-") as folder, log.open("a") as said:
        for source, name in (
            (PLUGIN, PLUGIN_NAME),
            (SERVED_BY, SERVED_BY.name),
        ):  # alone: other files here have names of packages
            shutil.copyfile(source, Path(folder) / name)
        process = subprocess.Popen(
            [str(VLLM_PYTHON), str(Path(folder) / SERVED_BY.name), json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, "PYTHONPATH": folder},
        )

        def answer() -> Json:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise click.ClickException(f"vLLM ended with exit code {process.wait()}; see {log}")
            return dict(json.loads(line))

        def generate(prompts: Sequence[Sequence[int]], new_tokens: int) -> Times:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"prompts": prompts, "new_tokens": new_tokens}) + "\n")
            process.stdin.flush()
            return Times(**answer())

        try:
            click.echo(f"{model.name} in vLLM: {answer()}", err=True)
            yield generate
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def measure(found: dict[str, Generate], cells: Sequence[Cell], vocabulary: int, rounds: int) -> Iterator[Json]:
    """A row for every cell and engine, which take turns."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for cell in cells:
        prompts = torch.randint(1, vocabulary, (cell.batch, cell.prompt_len), generator=generator).tolist()
        times: dict[str, list[Times]] = {name: [] for name in found}
        for turn in range(rounds + 1):
            for name, generate in found.items():
                taken = generate(prompts, cell.new_tokens if turn else 2)
                if turn:
                    times[name].append(taken)
        for name, taken_all in times.items():
            prefill = [cell.batch * cell.prompt_len / each.first_s for each in taken_all]
            decode = [cell.batch * (cell.new_tokens - 1) / (each.whole_s - each.first_s) for each in taken_all]
            yield {**asdict(cell), "engine": name, "prefill": _spread(prefill), "decode": _spread(decode)}


def _spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {name: round(value, 2) for name, value in (("median", median(values)), ("low", low), ("high", high))}


def measured_rows(subject: Subject, precision: str, folder: Path, engines: Sequence[str], eager: bool) -> list[Json]:
    source, out = source_of(subject, folder), compiled_at(subject, precision, folder)
    vocabulary = json.loads((source / "config.json").read_text("utf-8"))["vocab_size"]
    openers: dict[str, Callable[[], Any]] = {
        "transformers": lambda: by_transformers(source),
        "llmpq": lambda: by_us(out),
        "vllm": lambda: by_vllm(source if precision == "16" else out, subject.cells, eager, folder / "vllm.log"),
    }
    with ExitStack() as stack:
        opened = {name: stack.enter_context(openers[name]()) for name in engines}
        rows = measure(opened, subject.cells, vocabulary, subject.rounds)
        return [{"model": subject.name, "precision": precision, **row} for row in rows]


def table(found: Json, subject: Subject) -> Table:
    """Tokens per second; in brackets times transformers and times vLLM of the same turns."""
    shown = Table(title=f"{subject.name}: tokens per second (times transformers in 16 bits, times vLLM)")
    for column in (
        "precision",
        "engine",
        *(f"{phase} {cell.batch}" for cell in subject.cells for phase in ("prefill", "decode")),
    ):
        shown.add_column(column, justify="right")
    rows = {(row["precision"], row["engine"], row["batch"]): row for row in found["rows"] if row["model"] == subject.name}
    for precision in PRECISIONS:
        for engine in ENGINES:
            cells = [
                _cell(rows, (precision, engine, cell.batch), phase) for cell in subject.cells for phase in ("prefill", "decode")
            ]
            if any(cells):
                shown.add_row(precision if engine == ENGINES[0] else "", engine, *cells)
        shown.add_section()
    return shown


def _cell(rows: dict[tuple[str, str, int], Json], key: tuple[str, str, int], phase: str) -> str:
    if key not in rows:
        return ""
    precision, engine, batch = key
    value = rows[key][phase]["median"]
    if engine != "llmpq":
        return f"{value:.1f}"
    others = [rows.get((precision, other, batch)) for other in ("transformers", "vllm")]
    ratios = [f"{value / other[phase]['median']:.2f}" if other else "-" for other in others]
    return f"{value:.1f} ({', '.join(ratios)})"


def _read(path: Path) -> Json:
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {"rows": []}


FOLDER = click.option("--folder", type=click.Path(path_type=Path), default=Path("out/runtime"), show_default=True)
JSON_FILE = click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS, show_default="results/runtime.json")
EAGER = click.option("--eager", is_flag=True, help="vLLM without torch.compile.")


@click.group()
def main() -> None:
    """See the module's docstring."""
    os.environ.update(ONE_THREAD)
    import torch

    torch.set_num_threads(1)


@main.command()
@FOLDER
@EAGER
def prepare(folder: Path, eager: bool) -> None:
    """Models, and what vLLM compiles for them at their first use; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        save_random_llama(folder / "model")
    for subject in SUBJECTS:
        for precision in PRECISIONS:
            if not compiled_at(subject, precision, folder).exists():
                compile_at(subject, precision, folder)
            model = source_of(subject, folder) if precision == "16" else compiled_at(subject, precision, folder)
            if VLLM_PYTHON.exists():
                with by_vllm(model, subject.cells, eager, folder / "vllm.log") as generate:
                    generate([[1, 2, 3]], 2)


@main.command()
@FOLDER
@JSON_FILE
@EAGER
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), default=PRECISIONS[:3])
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), default=ENGINES)
@click.option("--model", "models", multiple=True, type=click.Choice([s.name for s in SUBJECTS]))
def run(folder: Path, path: Path, eager: bool, precisions: Sequence[str], engines: Sequence[str], models: Sequence[str]) -> None:
    """Measure; a model at a precision is in the JSON once all its cells are."""
    started, found = time.monotonic(), _read(path)
    found.update({"machine": machine(), "vllm_eager": eager})
    for subject in (s for s in SUBJECTS if not models or s.name in models):
        for precision in precisions:
            if not any((row["model"], row["precision"]) == (subject.name, precision) for row in found["rows"]):
                found["rows"] += measured_rows(subject, precision, folder, engines, eager)
                path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
                click.echo(f"{subject.name} {precision}: {time.monotonic() - started:.0f} s", err=True)
    show(found)


@main.command(name="table")
@JSON_FILE
def print_table(path: Path) -> None:
    """Print what was measured."""
    show(_read(path))


def show(found: Json) -> None:
    for subject in SUBJECTS:
        Console(width=170, file=sys.stdout).print(table(found, subject))


if __name__ == "__main__":
    main()
