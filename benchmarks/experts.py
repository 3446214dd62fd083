"""A layer's experts on this CPU: quantized one by one beside the model's own parameters at 16 bits, by tokens, in one run.

python benchmarks/experts.py [--experts 64] [--hidden 2048] [--intermediate 768] [--active 8] [--json FILE]

The shapes are those of Qwen3-30B-A3B, half of its experts; weights are random, and tokens choose experts at random. "16" is what
transformers runs by default, "16 eager" its loop over the experts that were hit. Times are medians over rounds in which the
variants take turns, `low` and `high` quartiles. Set OMP_NUM_THREADS=1, as in a stage.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import torch
from machine import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from llmpq.fx.experts import routed_experts
from llmpq.op_graph import distinct_experts
from llmpq.precision import PRECISIONS
from llmpq.profiling.random_weights import fill
from llmpq.quantization.quantized_linear import QuantizedLinear, prepare_linears

RESULTS = Path(__file__).parent / "results" / "experts.json"
TOKENS = (1, 4, 16, 128, 512)
NAMES = ("w4a16", "w8a16", "w8a8")
ROUNDS = 9
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(config: Qwen3MoeConfig, implementation: str) -> Qwen3MoeExperts:
    config._experts_implementation_internal = implementation
    with torch.device("meta"):
        made = Qwen3MoeExperts(config)
    return made


def quantized(original: nn.Module, name: str, hidden: int, intermediate: int) -> nn.Module:
    """The same experts at a precision, prepared for this CPU's kernels."""

    def linear(piece: str, expert: int) -> nn.Module:
        sizes = (intermediate, hidden) if piece == "down_proj" else (hidden, intermediate)
        return QuantizedLinear(*sizes, False, PRECISIONS[name], torch.bfloat16)

    made = routed_experts(original, linear)
    fill(made, torch.bfloat16, torch.device("cpu"))
    prepare_linears(made)
    return made.eval()


def held_bytes(module: nn.Module) -> int:
    tensors = sum(tensor.nbytes for tensor in module.state_dict().values())
    return tensors + sum(found.prepacked_bytes for found in module.modules() if isinstance(found, QuantizedLinear))


def timed(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(variants: dict[str, Experts], tokens: int, hidden: int, experts: int, active: int) -> dict[str, dict[str, float]]:
    """Seconds of every variant, in turns, on inputs that change from round to round."""
    draw = torch.Generator().manual_seed(tokens)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS + 1):
        x = torch.randn(tokens, hidden, generator=draw).to(torch.bfloat16)
        chosen = torch.stack([torch.randperm(experts, generator=draw)[:active] for _ in range(tokens)])
        weights = torch.full(chosen.shape, 1 / active, dtype=torch.bfloat16)
        for name, run in variants.items():
            seconds[name].append(timed(partial(run, x, chosen, weights)))
    return {name: _spread(found[1:]) for name, found in seconds.items()}  # the first round warms up


def _spread(seconds: list[float]) -> dict[str, float]:
    low, _, high = quantiles(seconds, n=4)
    return {"seconds": median(seconds), "low": low, "high": high}


@click.command(help=__doc__.splitlines()[0])
@click.option("--experts", default=64, show_default=True)
@click.option("--hidden", default=2048, show_default=True)
@click.option("--intermediate", default=768, show_default=True)
@click.option("--active", default=8, show_default=True, help="Experts of each token.")
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
@torch.inference_mode()
def main(experts: int, hidden: int, intermediate: int, active: int, target: Path) -> None:
    config = {"hidden_size": hidden, "num_experts": experts, "moe_intermediate_size": intermediate, "num_experts_per_tok": active}
    original = dense(Qwen3MoeConfig(**config), "grouped_mm")
    modules: dict[str, nn.Module] = {name: quantized(original, name, hidden, intermediate) for name in NAMES}
    fill(original, torch.bfloat16, torch.device("cpu"))
    eager = dense(Qwen3MoeConfig(**config), "eager")
    eager.load_state_dict(original.state_dict(), assign=True)
    modules = {"16": original.eval(), "16 eager": eager.eval(), **modules}
    nbytes = {name: held_bytes(module) for name, module in modules.items()}
    variants: dict[str, Experts] = dict(modules)
    rows: list[dict[str, Any]] = []
    table = Table("tokens", "experts reached", *modules, title=f"milliseconds, {experts} experts of {hidden} x {intermediate}")
    for tokens in TOKENS:
        found = measure(variants, tokens, hidden, experts, active)
        reached = distinct_experts(experts, active, tokens)
        rows.append({"tokens": tokens, "experts_reached": reached, "variants": found})
        cells = (f"{1e3 * row['seconds']:.3g} ({1e3 * row['low']:.3g}-{1e3 * row['high']:.3g})" for row in found.values())
        table.add_row(str(tokens), f"{reached:.1f}", *cells)
    table.add_row("MB", "", *(f"{size / 1e6:.4g}" for size in nbytes.values()))
    Console(width=120).print(table)
    value = {"machine": machine(), "experts": experts, **config, "rounds": ROUNDS, "bytes": nbytes, "rows": rows}
    target.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
