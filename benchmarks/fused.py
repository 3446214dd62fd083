"""Decoding with attention and small operators as torch has them, with our attention, and with all fused modules, in turns.

python benchmarks/runtime.py prepare      the models, where they are not there yet
python benchmarks/fused.py [--folder out/runtime] [--json FILE]

One thread; the linears have our kernels in all three. Greedy; decode tokens per second after the prompts, medians with quartiles.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from machine import machine
from rich.console import Console
from rich.table import Table
from runtime import FOLDER, ONE_THREAD, SUBJECTS, Generate, Subject, by_us, compiled_at, measure

RESULTS = Path(__file__).parent / "results" / "fused.json"
PRECISIONS = ("16", "w8a8", "w4a16")
NAMES = ("torch", "our attention", "all fused")


def preparations() -> dict[str, Callable[[Any], None]]:
    """What is done to a stage when it is loaded."""
    from llmpq.fused.attention import use_attention_kernel
    from llmpq.fused.prepare import prepare_stage
    from llmpq.quantization.quantized_linear import prepare_linears

    def with_attention(stage: Any) -> None:
        prepare_linears(stage)
        use_attention_kernel(stage)

    return dict(zip(NAMES, (prepare_linears, with_attention, prepare_stage)))


@contextmanager
def prepared(out: Path, prepare: Callable[[Any], None]) -> Iterator[Generate]:
    from llmpq.fused import prepare as place

    own, place.prepare_stage = place.prepare_stage, prepare
    try:
        with by_us(out) as generate:
            place.prepare_stage = own
            yield generate
    finally:
        place.prepare_stage = own


def measured(subject: Subject, precision: str, folder: Path, vocabulary: int) -> list[dict[str, Any]]:
    out = compiled_at(subject, precision, folder)
    with ExitStack() as stack:
        found = {name: stack.enter_context(prepared(out, prepare)) for name, prepare in preparations().items()}
        rows = measure(found, subject.cells, vocabulary, subject.rounds)
        return [{"model": subject.name, "precision": precision, **row} for row in rows]


def table(rows: Sequence[dict[str, Any]], subject: Subject) -> Table:
    """Tokens per second; in brackets times those of torch's operators."""
    shown = Table("precision", "batch", *NAMES, title=f"{subject.name}: decode, tokens per second")
    for precision in PRECISIONS:
        for cell in subject.cells:
            mine = [
                row for row in rows if (row["model"], row["precision"], row["batch"]) == (subject.name, precision, cell.batch)
            ]
            found = {row["engine"]: row["decode"]["median"] for row in mine}
            if found:
                each = [f"{found[name]:.0f} ({found[name] / found[NAMES[0]]:.2f}x)" for name in NAMES]
                shown.add_row(precision, str(cell.batch), *each)
    return shown


@click.command()
@FOLDER
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS, show_default="results/fused.json")
@click.option("--model", "models", multiple=True, type=click.Choice([s.name for s in SUBJECTS]), default=["demo"])
@click.option("--precision", "precisions", multiple=True, type=click.Choice(PRECISIONS), default=PRECISIONS)
def main(folder: Path, path: Path, models: Sequence[str], precisions: Sequence[str]) -> None:
    """See the module's docstring."""
    os.environ.update(ONE_THREAD)
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for subject in (subject for subject in SUBJECTS if subject.name in models):
        for precision in precisions:
            config = json.loads((compiled_at(subject, precision, folder) / "config.json").read_text("utf-8"))
            rows += measured(subject, precision, folder, config["vocab_size"])
            path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", "utf-8")
    for subject in (subject for subject in SUBJECTS if subject.name in models):
        Console(width=110).print(table(rows, subject))


if __name__ == "__main__":
    main()
