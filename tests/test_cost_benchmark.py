"""benchmarks/cost_model.py on files of a few shapes, in a process of its own."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmpq.costs.shipped import load_attention_table, load_gemm_table
from llmpq.costs.silicon_csv import as_grid

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "cost_model.py"


def run(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def gemm_file(tmp_path: Path) -> Path:
    """Every fifth shape of a shipped table."""
    measured = load_gemm_table("h100_sxm", "bfloat16").measured
    path = tmp_path / "gemm.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["gemm_dtype", "m", "n", "k", "latency"])
        for (n, k), latencies in zip(measured.shapes[::5], measured.latency_s[::5]):
            rows.writerows(("bfloat16", m, n, k, 1e3 * seconds) for m, seconds in zip(measured.tokens, latencies))
    return path


def test_gemm_error_is_reported_for_large_shapes_and_for_all(gemm_file: Path) -> None:
    report = run("--gemm", str(gemm_file), "--device", "h100_sxm", "--json")
    assert report["device"] == "H100"
    large, every = report["rows"]
    assert (large["dtype"], large["shapes"], every["shapes"]) == ("bfloat16", "n,k >= 1024", "all")
    assert 0 < large["n"] < every["n"] == 62 * 21
    assert large["median_ape"] < large["mean_ape"] < 5


def test_cross_validation_reports_every_kind_of_held_back_point(gemm_file: Path) -> None:
    rows = run("--gemm", str(gemm_file), "--device", "H100", "--cross-validate", "--json")["rows"]
    assert {row["left_out"] for row in rows} == {"half of the shapes", "a fifth of the shapes", "an n", "a k", "an m"}
    assert all(0 < row["median_ape"] < row["mean_ape"] and 50 < row["in_band_percent"] <= 100 for row in rows)


def test_attention_error_is_reported_by_dtypes(tmp_path: Path) -> None:
    measured = load_attention_table("a100_sxm/decode/bfloat16/bfloat16/128").measured
    path = tmp_path / "genattn.csv"
    names = "batch_size,isl,num_heads,num_key_value_heads,head_dim,window_size,beam_width,attn_dtype,kv_cache_dtype,step,latency"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names.split(","))
        for (batch, context, heads, kv_heads), seconds in zip(measured.points[::40], measured.latency_s[::40]):
            rows.writerow([batch, 1, heads, kv_heads, 128, 0, 1, "bfloat16", "bfloat16", context - 1, 1e3 * seconds])
    (row,) = run("--attention", str(path), "--device", "A100-80", "--json")["rows"]
    assert (row["phase"], row["n"]) == ("decode", 90)
    assert row["mean_ape"] < 5


def test_a_file_with_holes_becomes_the_grid_that_it_has() -> None:
    points = [(m, n, 64.0, 1.0) for m in (1.0, 2.0, 4.0) for n in map(float, range(1, 21))]
    points.remove((4.0, 7, 64.0, 1.0))
    points += [(3.0, 1.0, 64.0, 1.0), (1.0, 1.0, 64.0, 9.0), (1.0, 1.0, 64.0, 2.0)]
    grid = as_grid(np.array(points))
    assert grid.tokens.tolist() == [1, 2, 4]
    assert len(grid.shapes) == 19
    assert grid.latency_s[0, 0] == 2.0
