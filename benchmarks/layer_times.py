"""Layer times: one layer of a 30B Llama in vLLM on T4, V100, L4 and A100 (Helix), as predicted, and fitted to.

The source does not say at which context decode ran, nor how long the prompts of a prefill were: CONTEXT is assumed for both, the
mean prompt of its trace. Times are rounded to 0.1 ms below 10 ms, to 1 ms above; those below LEAST_S or of one sequence are out.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from llmpq.costs.latency import overhead_s
from llmpq.costs.op_latency import attention_s, of_batch, products_s, streams_s
from llmpq.costs.source_bands import FITTED_ROOFLINE, ROOFLINE_16_BIT, TABLE_16_BIT
from llmpq.graph import LayerKind
from llmpq.hardware.cluster import Cluster, Device
from llmpq.plan import Range
from llmpq.precision import PRECISIONS

TYPES = {"t4": "T4", "v100": "V100-16", "l4": "L4", "a100": "A100-40"}
PHASES = {"decode": "decode", "prefill": "prompt"}
CONTEXT = 760  # tokens
LEAST_S = 1e-3
FEWEST = 2
STEP = 0.02  # of the efficiencies that are tried
EFFICIENCIES = np.arange(0.34, 0.92, STEP)
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Seconds of one layer by sequences (decode) or prompt tokens (prefill)."""

    phase: str
    sizes: tuple[int, ...]
    seconds: np.ndarray


def read(folder: Path, device: str) -> list[Measured]:
    found = []
    for phase, file in PHASES.items():
        rows = list(csv.reader((folder / device / f"{file}_bs2time.csv").open()))
        times = [(int(size), float(ms) / 1e3) for size, ms in rows]
        kept = [(size, seconds) for size, seconds in times if seconds >= LEAST_S and size >= FEWEST]
        found.append(Measured(phase, tuple(size for size, _ in kept), np.array([seconds for _, seconds in kept])))
    return found


def llama_layer() -> LayerKind:
    """A layer of the 30B Llama: hidden 6656, 52 heads, intermediate 17920."""
    from transformers import LlamaConfig

    from llmpq.frontend.cached_graphs import layer_graph_of
    from llmpq.frontend.models import resolve

    with TemporaryDirectory() as folder:
        LlamaConfig(
            architectures=["LlamaForCausalLM"],
            hidden_size=6656,
            intermediate_size=17920,
            num_hidden_layers=60,
            num_attention_heads=52,
            vocab_size=32000,
            dtype="float16",
        ).save_pretrained(folder)
        return layer_graph_of(resolve(folder, weights=False)).kinds[0]


def predicted(device: Device, kind: LayerKind, measured: Measured) -> np.ndarray:
    return np.array([layer_s(device, kind, measured.phase, size) for size in measured.sizes])


def layer_s(device: Device, kind: LayerKind, phase: str, size: int) -> float:
    """Products over all tokens of the step, attention within each sequence."""
    rows = size if phase == "decode" else max(1, round(size / CONTEXT))
    tokens = 1 if phase == "decode" else size // rows
    context = CONTEXT if phase == "decode" else tokens
    seconds = products_s(device, kind.ops, kind.linears, PRECISIONS["16"], of_batch(tokens, context, rows), "float16", "local")
    seconds += streams_s(device, kind.ops, of_batch(tokens, context, rows), "float16")
    return seconds + attention_s(device, kind.ops, None, rows, tokens, context, "float16") + overhead_s(device)


def with_efficiencies(device: Device, prefill: float, decode: float) -> Device:
    """The device without a table, at these efficiencies."""
    return replace(device, type=replace(device.type, name="no table", prefill_efficiency=prefill, decode_efficiency=decode))


def fitted(device: Device, kind: LayerKind, measured: list[Measured]) -> tuple[float, float]:
    """Efficiencies of the least mean error over both phases: one after the other until neither moves."""

    def error(prefill: float, decode: float) -> float:
        changed = with_efficiencies(device, prefill, decode)
        return fmean(float(np.abs(predicted(changed, kind, each) / each.seconds - 1).mean()) for each in measured)

    prefill, decode = 0.6, 0.7
    for _ in range(3):
        prefill = min(EFFICIENCIES, key=lambda value: error(value, decode))
        decode = min(EFFICIENCIES, key=lambda value: error(prefill, value))
    return round(float(prefill), 2), round(float(decode), 2)


def row(name: str, by: str, measured: Measured, seconds: np.ndarray, band: Range) -> Row:
    error, ratio = seconds / measured.seconds - 1, measured.seconds / seconds
    inside = (band.low <= ratio) & (ratio <= band.high)
    low, high = np.quantile(ratio, [0.05, 0.95])
    return {
        "device": name,
        "phase": measured.phase,
        "by": by,
        "n": len(measured.sizes),
        "mean_ape": round(100 * float(np.abs(error).mean()), 2),
        "median_ape": round(100 * float(np.median(np.abs(error))), 2),
        "bias": round(100 * float(error.mean()), 2),
        "band": [band.low, band.high],
        "in_band_percent": round(100 * float(inside.mean()), 1),
        "ratio_5": round(float(low), 2),
        "ratio_95": round(float(high), 2),
    }


def layer_rows(folder: Path) -> tuple[list[Row], dict[str, Row]]:
    """Every device as predicted, and as if it were unknown, at the mean efficiencies of the others; fits beside what ships."""
    kind = llama_layer()
    devices = {name: Cluster.load(f"1x{device}").devices[0] for name, device in TYPES.items()}
    times = {name: read(folder, name) for name in TYPES}
    fits = {name: fitted(devices[name], kind, times[name]) for name in TYPES}
    rows = []
    for name, device in devices.items():
        band = TABLE_16_BIT if device.type.name.startswith("A100") else FITTED_ROOFLINE
        by = "table" if band == TABLE_16_BIT else "roofline, fitted to these times"
        others = [fit for other, fit in fits.items() if other != name]
        unknown = with_efficiencies(device, *(fmean(column) for column in zip(*others)))
        for measured in times[name]:
            rows.append(row(device.type.name, by, measured, predicted(device, kind, measured), band))
            left_out = predicted(unknown, kind, measured)
            rows.append(row(device.type.name, "roofline, device left out", measured, left_out, ROOFLINE_16_BIT))
    return rows, {TYPES[name]: _compared(devices[name], fit) for name, fit in fits.items()}


def _compared(device: Device, fit: Iterable[float]) -> Row:
    shipped = (device.type.prefill_efficiency, device.type.decode_efficiency)
    return {"prefill_decode_fitted": list(fit), "prefill_decode_shipped": list(shipped)}
