"""Table: what was measured in vLLM over unlike devices, and the geometric mean over the best by hand."""

from collections.abc import Iterator
from math import exp, fsum, log
from typing import Any

from rich.console import Console
from rich.table import Table

from llmpq.printing import format_ranges

COLUMNS = (
    "cluster",
    "load",
    "row",
    "layers and precisions",
    "tokens/s",
    "spread",
    "of hand",
    "KL",
    "KV blocks",
    "predicted",
    "simulated",
)


def show(found: dict[str, Any]) -> None:
    """Print the rows, and the geometric means."""
    table = Table()
    for column in COLUMNS:
        table.add_column(column)
    for name, state in found["clusters"].items():
        for row in state["rows"]:
            table.add_row(*_cells(name, row, _hand(state, row["load"]), found.get("kl", {})))
        table.add_section()
    Console(width=200).print(table)
    for line in means(found):
        print(line)


def means(found: dict[str, Any]) -> Iterator[str]:
    """Geometric mean of llmpq over the best by hand, per load and in all, over clusters that were not discarded."""
    for loads in (("batch",), ("serving",), ("batch", "serving")):
        ratios = dict(_ratios(found, loads))
        if ratios:
            mean = exp(fsum(map(log, ratios.values())) / len(ratios))
            lost = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio < 1]
            print_loads = " and ".join(loads)
            yield f"{print_loads}: {mean:.3f}x over {len(ratios)}; below 1: {', '.join(lost) or 'none'}"


def _ratios(found: dict[str, Any], loads: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    for name, state in found["clusters"].items():
        for row in state["rows"]:
            hand = _hand(state, row["load"])
            if row["row"] == "llmpq" and row["load"] in loads and hand and "median" in row and not state.get("discarded"):
                yield f"{name} {row['load']}", row["median"] / hand


def _hand(state: dict[str, Any], load: str) -> float | None:
    return next(
        (row["median"] for row in state["rows"] if (row["load"], row["row"]) == (load, "assign-hand") and "median" in row), None
    )


def _cells(name: str, row: dict[str, Any], hand: float | None, kl: dict[str, float]) -> tuple[str, ...]:
    if "error" in row:
        return (name, row["load"], row["row"], _places(row), "failed", row["error"][:40], "", "", "", "", "")
    runs, middle = row["tokens_per_s"], row["median"]
    return (
        name,
        row["load"],
        row["row"],
        _places(row),
        f"{middle:.1f}",
        f"{min(runs):.1f}-{max(runs):.1f}",
        "" if hand is None else f"{middle / hand:.2f}x",
        f"{kl[key]:.4f}" if (key := ",".join(row["options"])) in kl else "",
        f"{'+'.join(map(str, row['kv_blocks']))} (predicted {'+'.join(map(str, row['kv_blocks_predicted']))})",
        *("" if told is None else f"{told:.1f} ({told / middle:.2f})" for told in (row["predicted"], row.get("simulated"))),
    )


def _places(row: dict[str, Any]) -> str:
    """Layers of each stage with their precisions."""
    found, at = [], 0
    for length in row["partition"][0]:
        found.append(format_ranges(tuple(row["options"][at : at + length]), at))
        at += length
    return " | ".join(found)
