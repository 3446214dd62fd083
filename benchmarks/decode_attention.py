"""Attention of one new token on CPU: torch's scaled_dot_product_attention beside the two products that it consists of.

OMP_NUM_THREADS=1 python benchmarks/decode_attention.py [--json FILE]

bfloat16, 16 heads of 128, as many of keys and values; in turns, medians with quartiles; the products round scores to bfloat16.
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

RESULTS = Path(__file__).parent / "results" / "decode_attention.json"
BATCHES, CONTEXTS, HEADS, HEAD_DIM = (1, 4, 16), (40, 72, 512), 16, 128
TURNS, ENOUGH_S = 200, 1.5


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.transpose(-1, -2)).float() * HEAD_DIM**-0.5 + mask
    return softmax(scores, -1).to(value.dtype) @ value


def by_torch(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


def seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measured(batch: int, context: int) -> dict[str, Any]:
    """Milliseconds [lower quartile, median, upper quartile] of each, and the largest difference of their results."""
    query = torch.randn(batch, HEADS, 1, HEAD_DIM, dtype=torch.bfloat16)
    key, value = torch.randn(2, batch, HEADS, context, HEAD_DIM, dtype=torch.bfloat16)
    given = (query, key, value, torch.zeros(batch, 1, 1, context, dtype=torch.bfloat16))
    calls = {"torch": lambda: by_torch(*given), "products": lambda: by_products(*given)}
    apart = float((calls["torch"]() - calls["products"]()).abs().max())
    runs: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + ENOUGH_S
    while len(runs["torch"]) < TURNS and (len(runs["torch"]) < 5 or time.perf_counter() < deadline):
        for name, call in calls.items():
            runs[name].append(1e3 * seconds(call))
    rows = {name: [round(value, 4) for value in quantiles(found)] for name, found in runs.items()}
    return {"batch": batch, "context": context, **rows, "largest_difference": apart}


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS)
def main(path: Path) -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measured(batch, context) for batch in BATCHES for context in CONTEXTS]
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    table = Table("sequences", "positions", "torch, ms", "two products, ms", "times", title="attention of one new token")
    for row in rows:
        each = [f"{row[name][1]:.2f} ({row[name][0]:.2f}-{row[name][2]:.2f})" for name in ("torch", "products")]
        table.add_row(str(row["batch"]), str(row["context"]), *each, f"{row['torch'][1] / row['products'][1]:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
