"""Error of the cost model on measured latencies, in percent.

python benchmarks/cost_model.py --gemm FILE.csv.gz --device A100-80 --json        the shipped tables against any file
python benchmarks/cost_model.py --attention FILE.csv.gz --device l40s --json
python benchmarks/cost_model.py --gemm FILE.csv.gz --device A100-80 --cross-validate   fitted to half of the file's shapes
python benchmarks/cost_model.py --layers FOLDER --json        one layer of a 30B Llama (Helix), and every device left out
python benchmarks/cost_model.py --source FOLDER --output benchmarks/results/cost_model.json   everything, by cross-validation
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llmpq.costs import attention_estimate, gemm_estimate
from llmpq.costs.attention_table import attention_bands, attention_hardware, fit_attention_table
from llmpq.costs.band import ROOFLINE_16_BIT, ROOFLINE_QUANTIZED
from llmpq.costs.gemm_table import LARGE, GemmBands, GemmTable, Measurements, fit_gemm_table, gemm_bands, hardware_of
from llmpq.costs.predict import roofline_gemm_s
from llmpq.costs.silicon import Phase, canonical_device, systems
from llmpq.costs.silicon_csv import read_attention, read_gemm, read_points
from llmpq.hardware.devices import device_types

Row = dict[str, Any]
SEED = 1


def summary(measured: np.ndarray, predicted: np.ndarray, inside: np.ndarray | None = None) -> Row:
    """Number of points, mean and median absolute error in percent, share inside the band in percent."""
    ape = 100 * np.abs(predicted / measured - 1).ravel()
    row = {"n": int(ape.size), "mean_ape": round(float(ape.mean()), 3), "median_ape": round(float(np.median(ape)), 3)}
    return row if inside is None else {**row, "in_band_percent": round(100 * float(inside.mean()), 1)}


def shipped_gemm(file: Path, device: str) -> list[Row]:
    rows = []
    for dtype, (m, n, k, seconds) in ((dtype, points.T) for dtype, points in read_points(file).items()):
        estimate = gemm_estimate(device, dtype, m, n, k)
        inside = (estimate.low_s <= seconds) & (seconds <= estimate.high_s)
        for name, chosen in (("n,k >= 1024", np.minimum(n, k) >= LARGE), ("all", np.ones(len(m), bool))):
            if chosen.any():
                row = summary(seconds[chosen], estimate.latency_s[chosen], inside[chosen])
                rows.append({"dtype": dtype, "shapes": name, **row, "provenance": estimate.provenance})
    return rows


def shipped_attention(file: Path, device: str) -> list[Row]:
    rows = []
    phase = phase_of(file)
    for (dtype, kv_dtype, head_dim), measured in read_attention(file).items():
        batch, context, heads, kv_heads = measured.points.T
        new = context if phase == "prefill" else np.ones_like(context)
        estimate = attention_estimate(device, phase, batch, new, context, heads, kv_heads, head_dim, kv_dtype, dtype)
        inside = (estimate.low_s <= measured.latency_s) & (measured.latency_s <= estimate.high_s)
        name = f"{dtype}, {kv_dtype} cache, head size {head_dim}"
        row = summary(measured.latency_s, estimate.latency_s, inside)
        rows.append({"dtype": name, "phase": phase, **row, "provenance": estimate.provenance})
    return rows


def phase_of(file: Path) -> Phase:
    return "decode" if "genattn" in file.name else "prefill"


def folds(labels: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Which points are held back, in each of `count` random folds over distinct labels."""
    distinct, which = np.unique(labels, axis=0, return_inverse=True)
    fold = np.random.default_rng(SEED).permutation(len(distinct)) % count
    for number in range(count):
        yield (fold == number)[which.ravel()]


def systematic_folds(labels: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Which points are held back: every `count`-th of the distinct labels inside the range, so that neighbours stay."""
    inner = np.unique(labels)[1:-1]
    for number in range(count):
        yield np.isin(labels, inner[number::count])


class Gathered:
    """Held-back measurements with what was predicted for them."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, table: GemmTable, bands: GemmBands, shapes: np.ndarray, tokens: np.ndarray, seconds: np.ndarray) -> None:
        m, n, k = (axis.ravel() for axis in np.broadcast_arrays(tokens[None, :], shapes[:, :1], shapes[:, 1:]))
        predicted, measured = table.latency_s(m, n, k), seconds.ravel()
        low, high = (bands.factors(table, m, n, k) * predicted[:, None]).T
        self.parts.append((measured, predicted, (low <= measured) & (measured <= high), np.minimum(n, k) >= LARGE))

    def rows(self, **labels: str) -> list[Row]:
        measured, predicted, inside, large = (np.concatenate(column) for column in zip(*self.parts))
        chosen = {"n,k >= 1024": large, "all": np.ones(len(measured), bool)}
        return [
            {**labels, "shapes": name, **summary(measured[rows], predicted[rows], inside[rows])} for name, rows in chosen.items()
        ]


def validate_gemm(device: str, dtype: str, measured: Measurements) -> list[Row]:
    """Half of the shapes, a fifth of them, whole n, whole k and whole m left out; fitted and calibrated on the rest alone."""
    system = next(system for system in systems().values() if system.device_type == device)
    hardware = hardware_of(system, dtype)
    shapes, tokens = measured.shapes, measured.tokens
    splits: dict[str, Iterator[np.ndarray]] = {
        "half of the shapes": folds(shapes, 2),
        "a fifth of the shapes": folds(shapes, 5),
        "an n": systematic_folds(shapes[:, 0], 6),
        "a k": systematic_folds(shapes[:, 1], 6),
    }
    rows = []
    for name, held in splits.items():
        gathered = Gathered()
        for out in held:
            table = fit_gemm_table(hardware, measured.rows(~out))
            gathered.add(table, gemm_bands(table), shapes[out], tokens, measured.latency_s[out])
        rows += gathered.rows(dtype=dtype, left_out=name)
    gathered = Gathered()
    for out in systematic_folds(tokens, 6):
        table = fit_gemm_table(hardware, measured.columns(~out))
        gathered.add(table, gemm_bands(table), shapes, tokens[out], measured.latency_s[:, out])
    return rows + gathered.rows(dtype=dtype, left_out="an m")


def validate_attention(device: str, file: Path) -> list[Row]:
    """A quarter of the combinations of heads, and whole contexts, left out."""
    system = next(system for system in systems().values() if system.device_type == device)
    rows = []
    phase = phase_of(file)
    for (dtype, kv_dtype, head_dim), measured in read_attention(file).items():
        hardware = attention_hardware(system, phase, dtype, kv_dtype, head_dim)
        splits = {
            "heads": folds(measured.points[:, 2:], 4),
            "a context": systematic_folds(measured.points[:, 1], 5),
            "a group": folds(measured.points[:, 2:3] / measured.points[:, 3:4], 8),
        }
        for name, held in splits.items():
            parts = []
            for out in held:
                table = fit_attention_table(hardware, measured.rows(~out))
                points, seconds = measured.points[out], measured.latency_s[out]
                new = points[:, 1] if phase == "prefill" else np.ones(len(points))
                predicted = table.latency_s(points, new)
                low, high = (attention_bands(table).factors(table, points) * predicted[:, None]).T
                parts.append((seconds, predicted, (low <= seconds) & (seconds <= high)))
            row = summary(*(np.concatenate(column) for column in zip(*parts)))
            rows.append({"dtype": f"{dtype}, {kv_dtype} cache, head size {head_dim}", "phase": phase, "left_out": name, **row})
    return rows


def roofline_rows(device: str, file: Path) -> list[Row]:
    """As if the device had no table: roofline with the efficiencies of its class; quantiles of measured / predicted."""
    device_type = device_types()[device]
    rows = []
    for dtype, points in read_points(file).items():
        m, n, k, seconds = points[points[:, 1:3].min(axis=1) >= LARGE].T
        predicted = roofline_gemm_s(device_type, dtype, m, n, k)
        ratio = seconds / predicted
        band = ROOFLINE_16_BIT if dtype == "bfloat16" else ROOFLINE_QUANTIZED
        inside = (ratio >= band.low) & (ratio <= band.high)
        low, high = (round(float(edge), 2) for edge in np.quantile(ratio, [0.05, 0.95]))
        rows.append({"dtype": dtype, **summary(seconds, predicted, inside), "ratio_5": low, "ratio_95": high})
    return rows


def averages(rows: list[Row], key: Callable[[Row], str]) -> dict[str, Row]:
    """Mean over the tables, and the worst table."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(key(row), []).append(row)
    return {
        name: {
            "tables": len(group),
            "mean_ape": round(float(np.mean([row["mean_ape"] for row in group])), 2),
            "median_ape": round(float(np.mean([row["median_ape"] for row in group])), 2),
            "worst_mean_ape": max(row["mean_ape"] for row in group),
            "worst_median_ape": max(row["median_ape"] for row in group),
            "in_band_percent": [min(row["in_band_percent"] for row in group), max(row["in_band_percent"] for row in group)],
        }
        for name, group in grouped.items()
    }


def everything(source: Path) -> Row:
    gemm: list[Row] = []
    attention: list[Row] = []
    roofline: list[Row] = []
    for name, system in systems().items():
        device = system.device_type
        for file in sorted(source.glob(f"{name}_gemm_*.csv.gz")):
            roofline += [{"device": device, **row} for row in roofline_rows(device, file)]
            for dtype, measured in read_gemm(file).items():
                gemm += [{"device": device, **row} for row in validate_gemm(device, dtype, measured)]
                print(gemm[-1], flush=True)
        for file in sorted(source.glob(f"{name}_*attn_*.csv.gz")):
            attention += [{"device": device, **row} for row in validate_attention(device, file)]
            print(attention[-1], flush=True)
    return {
        "gemm_averages": averages(gemm, lambda row: f"{row['left_out']} left out, {row['shapes']}"),
        "attention_averages": averages(attention, lambda row: f"{row['phase']}, {row['left_out']} left out"),
        "gemm": gemm,
        "attention": attention,
        "roofline": roofline,
    }


def layers(folder: Path) -> Row:
    from layer_times import layer_rows

    rows, fits = layer_rows(folder)
    return {"rows": rows, "efficiencies": fits}


def one_file(options: argparse.Namespace) -> Row:
    device = canonical_device(options.device)
    if options.gemm and options.cross_validate:
        tables = read_gemm(options.gemm).items()
        rows = [row for dtype, measured in tables for row in validate_gemm(device, dtype, measured)]
    elif options.gemm:
        rows = shipped_gemm(options.gemm, device)
    elif options.cross_validate:
        rows = validate_attention(device, options.attention)
    else:
        rows = shipped_attention(options.attention, device)
    return {"device": device, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gemm", type=Path, help="CSV with gemm_dtype, m, n, k, latency (ms)")
    what.add_argument("--attention", type=Path, help="CSV with the columns of AIConfigurator; genattn in its name means decode")
    what.add_argument("--layers", type=Path, help="folder of Helix' layer times: t4, v100, l4, a100, each with two CSV files")
    what.add_argument("--source", type=Path, help="folder of all files: every table by cross-validation")
    parser.add_argument("--device", help="A100-80, H100, H200, L40S, or a100_sxm, h100_sxm, h200_sxm, l40s")
    parser.add_argument("--cross-validate", action="store_true", help="fit to a part of the file and report on the rest")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--output", type=Path, help="write the JSON there")
    options = parser.parse_args()
    if options.source is None and options.layers is None and options.device is None:
        parser.error("--device is missing")
    result = everything(options.source) if options.source else layers(options.layers) if options.layers else one_file(options)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    elif options.json:
        print(json.dumps(result))
    else:
        for row in result.get("rows", result):
            print("  ".join(f"{key} {value}" for key, value in row.items()) if isinstance(row, dict) else row)


if __name__ == "__main__":
    main()
