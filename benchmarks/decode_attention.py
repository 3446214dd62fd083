"""Attention of one new token on CPU: torch's scaled_dot_product_attention, the two products that it consists of, our kernel.

OMP_NUM_THREADS=1 python benchmarks/decode_attention.py [--json FILE]

bfloat16, 16 heads of 128, as many of keys and values; in turns, medians with quartiles. The products round scores to bfloat16,
torch's attention rounds weights, ours nothing but the result; `errors`: the largest, as a share of the largest result in fp64.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

import click
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax

from llmpq.fused.attention_kernel import AttentionKernel, attention_kernel

RESULTS = Path(__file__).parent / "results" / "decode_attention.json"
BATCHES, CONTEXTS, HEADS, HEAD_DIM = (1, 4, 16), (40, 72, 512), 16, 128
TURNS, ENOUGH_S = 200, 1.5


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.transpose(-1, -2)).float() * HEAD_DIM**-0.5 + mask
    return softmax(scores, -1).to(value.dtype) @ value


def by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def by_kernel(kernel: AttentionKernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return kernel.attend(query, key, value, mask, HEAD_DIM**-0.5).transpose(1, 2)


def seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(batch: int, context: int, kernel: AttentionKernel) -> dict[str, Any]:
    """Milliseconds [lower quartile, median, upper quartile] and the error of each."""
    query = torch.randn(batch, HEADS, 1, HEAD_DIM, dtype=torch.bfloat16)
    key, value = torch.randn(2, batch, HEADS, context, HEAD_DIM, dtype=torch.bfloat16)
    given = (query, key, value, torch.zeros(batch, 1, 1, context, dtype=torch.bfloat16))
    calls = {
        "torch": lambda: by_torch(*given),
        "products": lambda: by_products(*given),
        "ours": lambda: by_kernel(kernel, *given),
    }
    exact = by_torch(*(tensor.double() for tensor in given))
    errors = {name: float((call() - exact).abs().max() / exact.abs().max()) for name, call in calls.items()}
    runs: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + ENOUGH_S
    while len(runs["torch"]) < TURNS and (len(runs["torch"]) < 5 or time.perf_counter() < deadline):
        for name, call in calls.items():
            runs[name].append(1e3 * seconds(call))
    rows = {name: [round(value, 4) for value in quantiles(found)] for name, found in runs.items()}
    return {"batch": batch, "context": context, **rows, "errors": {name: round(error, 5) for name, error in errors.items()}}


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
def main(path: Path) -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernel = attention_kernel()
    if kernel is None:
        raise click.ClickException("no kernel here: it needs a C compiler and a CPU with AVX-512 BF16")
    rows = [measured(batch, context, kernel) for batch in BATCHES for context in CONTEXTS]
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    names = ("torch", "products", "ours")
    table = Table(
        "sequences", "positions", *(f"{name}, ms" for name in names), "torch / ours", title="attention of one new token"
    )
    for row in rows:
        each = [f"{row[name][1]:.3f} ({row[name][0]:.3f}-{row[name][2]:.3f})" for name in names]
        table.add_row(str(row["batch"]), str(row["context"]), *each, f"{row['torch'][1] / row['ours'][1]:.1f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
