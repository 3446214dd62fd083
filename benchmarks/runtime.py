"""The own runtime beside transformers' generate, in one process: prefill and decode tokens per second, turns taken in one run.

OMP_NUM_THREADS=1 python benchmarks/runtime.py [--hidden 1024 --layers 8] [--rounds 5] [--json FILE]

A Llama with random weights of the given size, and the demo model; 16 bits, w8a8, w4a16; batches of 1, 4 and 16 sequences of 64
tokens, 33 tokens generated greedily, no end of sequence. Prefill is the time to one token, decode the rest. Medians with
quartiles over rounds in which all variants take turns.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from machine import machine
from rich.console import Console
from rich.table import Table

import llmpq
from llmpq.frontend.models import resolve
from llmpq.generation import SamplingParams

RESULTS = Path(__file__).parent / "results" / "runtime.json"
BATCHES = (1, 4, 16)
PRECISIONS = ("16", "w8a8", "w4a16")
PROMPT, NEW = 64, 33
Generate = Callable[[Sequence[Sequence[int]], int], object]


@dataclass(frozen=True, slots=True)
class Variant:
    """`generate(prompts, new_tokens)` runs to the end."""

    name: str
    generate: Generate


def save_random_llama(folder: Path, hidden: int, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4 // 128 * 128,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        vocab_size=8192,
        max_position_embeddings=1024,
        eos_token_id=None,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


@contextmanager
def variants(source: Path, folder: Path) -> Iterator[list[Variant]]:
    """transformers in bfloat16, and ours compiled at every precision."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    made = [Variant("transformers", lambda prompts, new: _by_transformers(model, prompts, new))]
    for precision in PRECISIONS:
        out = folder / precision
        workload = llmpq.Batch(max(BATCHES), PROMPT, NEW)
        options: dict[str, Any] = {"quantizer": "rtn", "indicator": "prior", "quality_check": False, "theta": 0.0}
        compiled = llmpq.compile(source, "1xCPU", workload, out=out, precisions=(precision,), **options)
        made.append(Variant(f"llmpq {precision}", _by_us(compiled.backend)))
    yield made


def _by_transformers(model: Any, prompts: Sequence[Sequence[int]], new: int) -> object:
    ids = torch.tensor(prompts)
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
    )


def _by_us(backend: Any) -> Generate:
    return lambda prompts, new: backend.generate(prompts, SamplingParams(max_new_tokens=new))


@torch.inference_mode()
def measure(name: str, found: list[Variant], vocabulary: int, rounds: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for batch in BATCHES:
        prompts = torch.randint(1, vocabulary, (batch, PROMPT), generator=generator).tolist()
        seconds: dict[tuple[str, int], list[float]] = {}
        for turn in range(rounds + 1):
            for variant in found:
                for new in (1, NEW):
                    start = time.perf_counter()
                    variant.generate(prompts, new)
                    if turn:  # the first is a warm-up
                        seconds.setdefault((variant.name, new), []).append(time.perf_counter() - start)
        for variant in found:
            first, whole = seconds[variant.name, 1], seconds[variant.name, NEW]
            prefill = [batch * PROMPT / each for each in first]
            decode = [batch * (NEW - 1) / (all_ - one) for all_, one in zip(whole, first)]
            rows.append(
                {"model": name, "batch": batch, "variant": variant.name, "prefill": _spread(prefill), "decode": _spread(decode)}
            )
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": median(values), "low": low, "high": high}


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    shown = Table(title=f"{name}: tokens per second (times transformers)")
    shown.add_column("")
    for batch in BATCHES:
        for phase in ("prefill", "decode"):
            shown.add_column(f"{phase} {batch}", justify="right")
    base = {
        (row["batch"], phase): row[phase]["median"]
        for row in rows
        if row["variant"] == "transformers"
        for phase in ("prefill", "decode")
    }
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = {row["batch"]: row for row in rows if row["variant"] == variant}
        cells = [
            f"{own[batch][phase]['median']:.1f} ({own[batch][phase]['median'] / base[batch, phase]:.2f})"
            for batch in BATCHES
            for phase in ("prefill", "decode")
        ]
        shown.add_row(variant, *cells)
    return shown


@click.command(help=__doc__)
@click.option("--hidden", default=1024, show_default=True)
@click.option("--layers", default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(2), default=5, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
def main(hidden: int, layers: int, rounds: int, path: Path) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    demo = resolve("demo", weights=True).directory
    assert demo is not None
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        random = Path(folder) / "random"
        save_random_llama(random, hidden, layers)
        for name, source in ((f"random Llama {hidden} x {layers}", random), ("demo", demo)):
            with variants(source, Path(folder) / f"out-{source.name}") as found:
                vocabulary = json.loads((source / "config.json").read_text())["vocab_size"]
                measured = measure(name, found, vocabulary, rounds)
            Console(width=130).print(table(name, measured))
            rows += measured
    path.write_text(json.dumps({"machine": machine(), "prompt_len": PROMPT, "new_tokens": NEW, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
