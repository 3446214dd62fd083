"""Reader of CSV files of measured latencies, in milliseconds, as AIConfigurator publishes them."""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmpq.costs.attention_table import AttentionPoints
from llmpq.costs.gemm_table import Measurements

MS = 1e-3


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, gzipped or not."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        yield from csv.DictReader(file)


def read_points(path: Path) -> dict[str, np.ndarray]:
    """dtype -> [P, 4] of m, n, k, seconds, for files with any holes."""
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in read_rows(path):
        found[row["gemm_dtype"]].append((float(row["m"]), float(row["n"]), float(row["k"]), float(row["latency"]) * MS))
    return {dtype: np.array(points) for dtype, points in found.items()}


def read_gemm(path: Path) -> dict[str, Measurements]:
    """dtype -> the shapes that were measured at every m which most shapes have."""
    return {dtype: as_grid(points) for dtype, points in read_points(path).items()}


def as_grid(points: np.ndarray) -> Measurements:
    """Points [P, 4] as a full grid; several measurements of one point count by their median."""
    cells: dict[tuple[float, float], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for m, n, k, seconds in points:
        cells[n, k][m].append(seconds)
    counts = {m: sum(m in cell for cell in cells.values()) for m in sorted({m for cell in cells.values() for m in cell})}
    tokens = [m for m, count in counts.items() if count >= 0.9 * len(cells)]
    shapes = [shape for shape in sorted(cells) if all(m in cells[shape] for m in tokens)]
    latency = [[float(np.median(cells[shape][m])) for m in tokens] for shape in shapes]
    return Measurements(np.array(tokens), np.array(shapes), np.array(latency))


def read_attention(path: Path) -> dict[tuple[str, str, int], AttentionPoints]:
    """(dtype, key/value dtype, head size) -> points; decode files have one new token and `step` tokens before it."""
    found: dict[tuple[str, str, int], list[tuple[float, ...]]] = defaultdict(list)
    for row in read_rows(path):
        context = float(row["isl"]) + float(row["step"])
        shape = (float(row["batch_size"]), context, float(row["num_heads"]), float(row["num_key_value_heads"]))
        key = (row["attn_dtype"], row["kv_cache_dtype"], int(row["head_dim"]))
        found[key].append((*shape, float(row["latency"]) * MS))
    return {key: AttentionPoints(np.array(rows)[:, :4], np.array(rows)[:, 4]) for key, rows in found.items()}
