"""Linear kernels on this CPU: every precision beside the 16-bit product, by tokens, weights cold, all in one run.

python benchmarks/kernels.py [--shape 5632x2048 ...] [--json FILE]

Times are medians over rounds in which the variants take turns; `low` and `high` are quartiles. Weights rotate over copies that
together exceed the cache. "few" is the packed product, "many" unpacking with the dense product: `FEW_TOKENS` in
llmpq/quantization/packed_kernels.py is where they cross. Set OMP_NUM_THREADS=1 for what one stage process does.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from llmpq.precision import PRECISIONS
from llmpq.quantization.packed_kernels import PackedKernels, packed_kernels
from llmpq.quantization.packing import pack
from llmpq.quantization.quantized_linear import QuantizedLinear, prepare_linears
from llmpq.quantization.rounding import quantize

RESULTS = Path(__file__).parent / "results" / "kernels.json"
TOKENS = (1, 2, 4, 8, 16, 24, 32, 128, 512)
NAMES = ("w3a16", "w4a16", "w8a16", "w8a8")
CACHE_BYTES = 192 << 20  # copies of the weight take as much: a third of them exceeds the cache
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to multiply: called with x, it uses the next copy of its weight."""

    name: str
    run: Callable[[Tensor], Tensor]
    most_tokens: int = 10**9


def linears(name: str, rows: int, columns: int) -> list[nn.Module]:
    copies = max(3, CACHE_BYTES // PRECISIONS[name].weight_bytes(rows, columns))
    if name == "16":
        return [nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16) for _ in range(copies)]
    tensors = pack(quantize(torch.randn(rows, columns), PRECISIONS[name]))
    made: list[nn.Module] = []
    for _ in range(copies):
        linear = QuantizedLinear(columns, rows, False, PRECISIONS[name], torch.bfloat16)
        linear.load_state_dict({key: tensor.clone() for key, tensor in tensors.items()}, assign=True)
        prepare_linears(linear)
        made.append(linear)
    return made


def variants(rows: int, columns: int) -> list[Variant]:
    """The 16-bit product, what QuantizedLinear does, and both ways of the packed kernels apart."""
    found = []
    kernels = packed_kernels()
    for name in ("16", *NAMES):
        modules = linears(name, rows, columns)
        third = len(modules) // 3  # so that no variant finds in the cache what another has just read
        turn = cycle(modules)
        found.append(Variant(name, lambda x, turn=turn: next(turn)(x)))  # type: ignore[misc]
        if kernels is not None and name not in ("16", "w8a8"):
            bits, buffer = PRECISIONS[name].num_bits, torch.empty(rows, columns, dtype=torch.bfloat16)
            found.append(Variant(f"{name} few", partial(few, kernels, cycle(modules[third:] + modules[:third]), bits), 32))
            found.append(
                Variant(f"{name} many", partial(many, kernels, cycle(modules[2 * third :] + modules[: 2 * third]), bits, buffer))
            )
    return found


def few(kernels: PackedKernels, turn: "cycle[nn.Module]", bits: int, x: Tensor) -> Tensor:
    linear = next(turn)
    return kernels.product(x, linear.get_buffer("weight_packed"), linear.get_buffer("weight_scale"), bits).to(x.dtype)


def many(kernels: PackedKernels, turn: "cycle[nn.Module]", bits: int, buffer: Tensor, x: Tensor) -> Tensor:
    linear = next(turn)
    weight = kernels.unpack(linear.get_buffer("weight_packed"), linear.get_buffer("weight_scale"), bits, buffer)
    return nn.functional.linear(x, weight)


@torch.inference_mode()
def measure(rows: int, columns: int) -> list[dict[str, Any]]:
    made = variants(rows, columns)
    measured = []
    for tokens in TOKENS:
        x = torch.randn(tokens, columns).bfloat16()
        seconds: dict[str, list[float]] = {variant.name: [] for variant in made if tokens <= variant.most_tokens}
        for _ in range(ROUNDS if tokens < 128 else 5):
            for variant in made:
                if variant.name in seconds:
                    start = time.perf_counter()
                    variant.run(x)
                    seconds[variant.name].append(time.perf_counter() - start)
        base = median(seconds["16"])
        for name, found in seconds.items():
            low, _, high = quantiles(found, n=4)
            middle = median(found)
            figures = {"us": middle * 1e6, "low": low * 1e6, "high": high * 1e6, "speedup": base / middle}
            measured.append({"rows": rows, "columns": columns, "tokens": tokens, "kernel": name, **figures})
    return measured


def table(measured: list[dict[str, Any]]) -> Table:
    first = measured[0]
    shown = Table(title=f"{first['rows']} x {first['columns']}, microseconds (times as fast as 16 bits)")
    shown.add_column("kernel")
    for tokens in TOKENS:
        shown.add_column(str(tokens), justify="right")
    for name in dict.fromkeys(row["kernel"] for row in measured):
        cells = {row["tokens"]: f"{row['us']:.0f} ({row['speedup']:.2f})" for row in measured if row["kernel"] == name}
        shown.add_row(name, *(cells.get(tokens, "") for tokens in TOKENS))
    return shown


@click.command(help=__doc__)
@click.option("--shape", "shapes", multiple=True, default=("5632x2048", "2048x5632"), help="out x in features")
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
def main(shapes: tuple[str, ...], path: Path) -> None:
    torch.manual_seed(0)
    rows = []
    for shape in shapes:
        out_features, in_features = map(int, shape.split("x"))
        measured = measure(out_features, in_features)
        Console(width=130).print(table(measured))
        rows += measured
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
