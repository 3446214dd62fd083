"""Layer times: one layer of a 30B Llama in vLLM on T4, V100, L4 and A100 (Helix), as predicted, and fitted to.

Of T4, V100 and L4 every efficiency and the factor of every row step is fitted, of the A100, whose products come from a table, the
efficiency at which attention reads its cache. Errors are of all times by that fit; of every time by a fit to every second size
that it is not among; and of a device that nothing is known of: at the mean of two efficiencies that fit the other three best.

The source does not say at which context decode ran, nor how long the prompts of a prefill were: CONTEXT is assumed for both, the
mean prompt of its trace. Times are rounded to 0.1 ms below 10 ms, to 1 ms above; those below LEAST_S or of one sequence are out.
"""

import csv
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from llmpq.costs.latency import overhead_s
from llmpq.costs.lookup import has_table
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
STEPS = (0.16, 0.08, 0.04, 0.02, 0.01)  # by which the fitted numbers are moved
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """Seconds of one layer by sequences (decode) or prompt tokens (prefill)."""

    phase: str
    sizes: tuple[int, ...]
    seconds: np.ndarray

    def every_second(self, start: int) -> "Measured":
        return Measured(self.phase, self.sizes[start::2], self.seconds[start::2])


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


@dataclass(frozen=True)
class Fit:
    """What is fitted to one device's times.

    cache: None: attention reads its cache at the efficiency of weights. factors: of the row steps, whose rows are read off the
    times and kept.
    """

    prefill: float
    decode: float
    cache: float | None = None
    factors: tuple[float, ...] = ()

    @property
    def numbers(self) -> tuple[float, ...]:
        return (self.prefill, self.decode, *(() if self.cache is None else (self.cache, *self.factors)))

    def moved(self, place: int, value: float) -> "Fit":
        numbers = (*self.numbers[:place], value, *self.numbers[place + 1 :])
        return Fit(*numbers[:3], factors=numbers[3:])

    def on(self, device: Device) -> Device:
        """The device at these efficiencies, and without a table where it has one."""
        changed = replace(
            device.type,
            name="no table",
            prefill_efficiency=self.prefill,
            decode_efficiency=self.decode,
            cache_efficiency=self.cache,
            row_steps=tuple(zip((least for least, _ in device.type.row_steps), self.factors)),
        )
        return replace(device, type=changed)


TWO = Fit(0.6, 0.7)


def every(device: Device) -> Fit:
    """What the search for all of a device's numbers starts from."""
    return Fit(0.6, 0.7, 0.75, tuple(1.4 for _ in device.type.row_steps))


def fitted(device: Device, kind: LayerKind, measured: list[Measured], start: Fit) -> Fit:
    """The least sum of mean errors of both phases: one number after the other moved, by ever smaller steps, until none helps."""

    @cache
    def error(fit: Fit) -> float:
        return mean_error(fit.on(device), kind, measured)

    fit = start
    for step in STEPS:
        moved = True
        while moved:
            places = [(place, value + sign * step) for place, value in enumerate(fit.numbers) for sign in (-1, 1)]
            best = min((fit.moved(place, round(value, 3)) for place, value in places), key=error)
            moved = error(best) < error(fit)
            fit = best if moved else fit
    return fit


def mean_error(device: Device, kind: LayerKind, measured: list[Measured]) -> float:
    return sum(float(np.abs(predicted(device, kind, each) / each.seconds - 1).mean()) for each in measured)


def with_cache(device: Device, efficiency: float) -> Device:
    return replace(device, type=replace(device.type, cache_efficiency=efficiency))


def fitted_device(device: Device, kind: LayerKind, measured: list[Measured]) -> Device:
    """The device with what is fitted to it: all of a roofline, of a table the efficiency of the cache."""
    if not is_table(device):
        return fitted(device, kind, measured, every(device)).on(device)
    tried = [with_cache(device, efficiency) for efficiency in np.arange(0.7, 0.9, STEPS[-1]).round(3).tolist()]
    return min(tried, key=lambda one: mean_error(one, kind, measured))


def is_table(device: Device) -> bool:
    return has_table(device.type, "16")


def half_left_out(device: Device, kind: LayerKind, measured: list[Measured]) -> list[tuple[Measured, np.ndarray]]:
    """Every time of each phase, as predicted by a fit to the half of the sizes that it is not of."""
    halves = [[each.every_second(start) for each in measured] for start in (0, 1)]
    fits = [fitted_device(device, kind, half) for half in halves]
    found = []
    for even, odd in zip(*halves):
        both = Measured(even.phase, even.sizes + odd.sizes, np.concatenate([even.seconds, odd.seconds]))
        found.append((both, np.concatenate([predicted(fits[1], kind, even), predicted(fits[0], kind, odd)])))
    return found


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


def rows_of(device: Device, kind: LayerKind, measured: list[Measured], others: list[tuple[Fit, Fit]]) -> list[Row]:
    """One device: as shipped, half of its sizes left out, and left out itself."""
    name, source = device.type.name, "table" if is_table(device) else "roofline"
    band = TABLE_16_BIT if is_table(device) else FITTED_ROOFLINE
    rows = [row(name, f"{source}, fitted to these times", each, predicted(device, kind, each), band) for each in measured]
    rows += [row(name, f"{source}, half left out", *both, band) for both in half_left_out(device, kind, measured)]
    if is_table(device):
        borrowed = with_cache(device, fmean(whole.cache for whole, _ in others if whole.cache is not None))
        rows += [row(name, "table, device left out", each, predicted(borrowed, kind, each), band) for each in measured]
    unknown = Fit(*(fmean(column) for column in zip(*(two.numbers for _, two in others)))).on(device)
    return rows + [
        row(name, "roofline, device left out", each, predicted(unknown, kind, each), ROOFLINE_16_BIT) for each in measured
    ]


def layer_rows(folder: Path) -> tuple[list[Row], dict[str, Row]]:
    """Rows of every device, and what is fitted to each beside what ships."""
    kind = llama_layer()
    devices = {name: Cluster.load(f"1x{device}").devices[0] for name, device in TYPES.items()}
    times = {name: read(folder, name) for name in TYPES}
    fits = {
        name: (fitted(device, kind, times[name], every(device)), fitted(device, kind, times[name], TWO))
        for name, device in devices.items()
    }
    rows = []
    for name, device in devices.items():
        rows += rows_of(device, kind, times[name], [fit for other, fit in fits.items() if other != name])
    return rows, {TYPES[name]: compared(device, kind, times[name], *fits[name]) for name, device in devices.items()}


def compared(device: Device, kind: LayerKind, measured: list[Measured], whole: Fit, two: Fit) -> Row:
    efficiencies = (device.type.prefill_efficiency, device.type.decode_efficiency, device.type.cache_efficiency)
    found = {
        "prefill_decode_cache_fitted": [whole.prefill, whole.decode, whole.cache],
        "prefill_decode_cache_shipped": efficiencies,
        "prefill_decode_fitted": two.numbers,
    }
    if is_table(device):
        return {**found, "cache_fitted_beside_table": fitted_device(device, kind, measured).type.cache_efficiency}
    least = [least for least, _ in device.type.row_steps]
    return {**found, "row_steps_fitted": dict(zip(least, whole.factors)), "row_steps_shipped": dict(device.type.row_steps)}
