"""Linear kernels on this CPU: every precision beside the 16-bit product, by tokens, weights cold, all in one run.

python benchmarks/kernels.py [--shape 5632x2048 ...] [--json FILE]

Times are medians over rounds in which the variants take turns, the cache filled with something else before; `low` and `high` are
quartiles. "few" is the product of few tokens, "many" unpacking with the dense product: `FEW_TOKENS` in packed_kernels.py and
dense_linear.py is where they cross; "16 packed" has the weight in a layout of its own. At one token the share of this core's
bandwidth is told, at 512 that of its products per second (benchmarks/ceilings.c). Set OMP_NUM_THREADS=1, as in a stage.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import torch
from ceilings import Ceilings, ceilings
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from llmpq.precision import PRECISIONS
from llmpq.quantization.dense_kernel import DenseKernel, dense_kernel
from llmpq.quantization.int8_kernel import OneDnnKernel
from llmpq.quantization.packed_kernels import MOST_TOKENS, PackedKernels, packed_kernels
from llmpq.quantization.packing import pack
from llmpq.quantization.quantized_linear import QuantizedLinear, prepare_linears
from llmpq.quantization.rounding import quantize

RESULTS = Path(__file__).parent / "results" / "kernels.json"
TOKENS = (1, 2, 4, 8, 16, 24, 32, 128, 512)
NAMES = ("w3a16", "w4a16", "w8a16", "w8a8")
COPIES = 3  # of a weight, used in turn
FLUSH_BYTES = 96 << 20  # read before every product: whatever lay in the cache is gone, and what was to be written is
ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to multiply: called with x, it uses the next copy of its weight."""

    name: str
    run: Callable[[Tensor], Tensor]
    most_tokens: int = 10**9


def quantized_linears(name: str, rows: int, columns: int) -> list[QuantizedLinear]:
    tensors = pack(quantize(torch.randn(rows, columns), PRECISIONS[name]))
    made = []
    for _ in range(COPIES):
        linear = QuantizedLinear(columns, rows, False, PRECISIONS[name], torch.bfloat16)
        linear.load_state_dict({key: tensor.clone() for key, tensor in tensors.items()}, assign=True)
        prepare_linears(linear)
        made.append(linear)
    return made


def variants(rows: int, columns: int) -> list[Variant]:
    """The 16-bit product, what QuantizedLinear does, and both of its ways with packed weights apart."""
    found, kernels = dense_variants(rows, columns), packed_kernels()
    for name in NAMES:
        modules = quantized_linears(name, rows, columns)
        found.append(Variant(name, partial(by_module, cycle(modules))))
        if kernels is not None and name != "w8a8":
            found.append(Variant(f"{name} few", partial(few, kernels, cycle(modules)), MOST_TOKENS))
            found.append(Variant(f"{name} many", partial(many, kernels, cycle(modules))))
    return [*found, Variant("w8a8 oneDNN", partial(by_onednn, onednn_weight(rows, columns)))]


def dense_variants(rows: int, columns: int) -> list[Variant]:
    """torch's 16-bit product, and both kernels of ours."""
    modules, kernel = [nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16) for _ in range(COPIES)], dense_kernel()
    found = [Variant("16", partial(by_module, cycle(modules)))]
    if kernel is not None:
        packed = [kernel.pack(module.weight.detach()) for module in modules]
        found.append(Variant("16 few", partial(dense_few, kernel, cycle(modules)), MOST_TOKENS))
        found.append(Variant("16 packed", partial(dense_packed, kernel, rows, cycle(packed))))
    return found


def by_module(turn: "cycle[Any]", x: Tensor) -> Tensor:
    y: Tensor = next(turn)(x)
    return y


def dense_few(kernel: DenseKernel, turn: "cycle[nn.Linear]", x: Tensor) -> Tensor:
    return kernel.few_tokens(x, next(turn).weight, None)


def dense_packed(kernel: DenseKernel, rows: int, turn: "cycle[Tensor]", x: Tensor) -> Tensor:
    return kernel.packed_product(x, next(turn), rows, None)


def onednn_weight(rows: int, columns: int) -> tuple[OneDnnKernel, Tensor, Tensor]:
    weight, kernel = quantize(torch.randn(rows, columns), PRECISIONS["w8a8"]), OneDnnKernel()
    return kernel, kernel.prepack(weight.codes), weight.scale


def by_onednn(weight: tuple[OneDnnKernel, Tensor, Tensor], x: Tensor) -> Tensor:
    kernel, prepacked, scale = weight
    return kernel.product(x, prepacked, scale, None)


def few(kernels: PackedKernels, turn: "cycle[QuantizedLinear]", x: Tensor) -> Tensor:
    return next(turn).few_tokens(x, kernels)


def many(kernels: PackedKernels, turn: "cycle[QuantizedLinear]", x: Tensor) -> Tensor:
    return next(turn).many_tokens(x, kernels)


@torch.inference_mode()
def measure(rows: int, columns: int, most: Ceilings | None) -> list[dict[str, Any]]:
    made, flush = variants(rows, columns), torch.ones(FLUSH_BYTES // 4)
    measured = []
    for tokens in TOKENS:
        x = torch.randn(tokens, columns).bfloat16()
        seconds: dict[str, list[float]] = {variant.name: [] for variant in made if tokens <= variant.most_tokens}
        for _ in range(ROUNDS if tokens < 128 else 5):
            for variant in made:
                if variant.name in seconds:
                    flush.sum()
                    start = time.perf_counter()
                    variant.run(x)
                    seconds[variant.name].append(time.perf_counter() - start)
        base = median(seconds["16"])
        for name, found in seconds.items():
            low, _, high = quantiles(found, n=4)
            middle = median(found)
            figures = {"us": middle * 1e6, "low": low * 1e6, "high": high * 1e6, "speedup": base / middle}
            if most is not None:
                weight_bytes = PRECISIONS[name.split()[0]].weight_bytes(rows, columns)
                figures |= most.of(name, rows, columns, tokens, weight_bytes, middle)
            measured.append({"rows": rows, "columns": columns, "tokens": tokens, "kernel": name, **figures})
    return measured


def table(measured: list[dict[str, Any]]) -> Table:
    first = measured[0]
    shown = Table(title=f"{first['rows']} x {first['columns']}, microseconds (times as fast as 16 bits, share of the ceiling)")
    shown.add_column("kernel")
    for tokens in TOKENS:
        shown.add_column(str(tokens), justify="right")
    for name in dict.fromkeys(row["kernel"] for row in measured):
        own = [row for row in measured if row["kernel"] == name]
        cells = {row["tokens"]: f"{row['us']:.0f} ({row['speedup']:.2f}{_share(row)})" for row in own}
        shown.add_row(name, *(cells.get(tokens, "") for tokens in TOKENS))
    return shown


def _share(row: dict[str, Any]) -> str:
    """Of the ceiling that bounds so many tokens."""
    share = {1: "of_bandwidth", 512: "of_flops"}.get(row["tokens"])
    return f", {row[share]:.0%}" if share in row else ""


@click.command(help=__doc__)
@click.option("--shape", "shapes", multiple=True, default=("5632x2048", "2048x5632"), help="out x in features")
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
def main(shapes: tuple[str, ...], path: Path) -> None:
    torch.manual_seed(0)
    rows, most = [], ceilings()
    click.echo(f"{most}")
    for shape in shapes:
        out_features, in_features = map(int, shape.split("x"))
        measured = measure(out_features, in_features, most)
        Console(width=130).print(table(measured))
        rows += measured
    found = {"machine": machine(), "ceilings": None if most is None else asdict(most), "rows": rows}
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
