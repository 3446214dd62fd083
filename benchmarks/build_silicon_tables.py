"""Turns CSV files of measured GEMM and attention latencies into the compact tables of llmpq/data/silicon.

python benchmarks/build_silicon_tables.py SOURCE_FOLDER [--output llmpq/data/silicon]

SOURCE_FOLDER holds <system>_gemm_<engine>.csv.gz, <system>_ctxattn_... and <system>_genattn_..., latencies in ms, and LICENSE.
"""

import argparse
import zipfile
from dataclasses import astuple
from pathlib import Path

import numpy as np

from llmpq.costs.attention_table import attention_hardware, fit_attention_roofline
from llmpq.costs.gemm_table import fit_kernels, fit_roofline, hardware_of
from llmpq.costs.silicon import LATENCY_UNIT_S, Phase, systems
from llmpq.costs.silicon_csv import read_attention, read_gemm


def half(latency_s: np.ndarray) -> np.ndarray:
    """float16 in units of 16 us."""
    return (latency_s / LATENCY_UNIT_S).astype(np.float16)


def one(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    return found[0] if found else None


def gemm_arrays(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, system in systems().items():
        file = one(folder, f"{name}_gemm_*.csv.gz")
        for dtype, measured in (read_gemm(file) if file else {}).items():
            key = f"{name}/{dtype}"
            hardware = hardware_of(system, dtype)
            roofline = fit_roofline(hardware, measured)
            arrays[f"{key}/tokens"] = measured.tokens.astype(np.int32)
            arrays[f"{key}/shapes"] = measured.shapes.astype(np.int32)
            arrays[f"{key}/latency"] = half(measured.latency_s)
            arrays[f"{key}/roofline"] = np.array(astuple(roofline))
            arrays[f"{key}/kernels"] = fit_kernels(hardware, roofline, measured).astype(np.float32)
            print(key, measured.latency_s.shape, roofline)
    return arrays


def attention_arrays(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for name, system in systems().items():
        phases: tuple[tuple[Phase, str], ...] = (("prefill", "ctxattn"), ("decode", "genattn"))
        for phase, kind in phases:
            file = one(folder, f"{name}_{kind}_*.csv.gz")
            for (dtype, kv_dtype, head_dim), measured in (read_attention(file) if file else {}).items():
                key = f"{name}/{phase}/{dtype}/{kv_dtype}/{head_dim}"
                roofline = fit_attention_roofline(attention_hardware(system, phase, dtype, kv_dtype, head_dim), measured)
                arrays[f"{key}/points"] = measured.points.astype(np.int32)
                arrays[f"{key}/latency"] = half(measured.latency_s)
                arrays[f"{key}/roofline"] = np.array(astuple(roofline))
                print(key, measured.latency_s.shape, roofline)
    return arrays


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A compressed .npz with the same bytes every time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as entry:
                np.lib.format.write_array(entry, array)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "llmpq" / "data" / "silicon")
    options = parser.parse_args()
    save(options.output / "gemm.npz", gemm_arrays(options.source))
    save(options.output / "attention.npz", attention_arrays(options.source))
    (options.output / "LICENSE").write_text((options.source / "LICENSE").read_text())


if __name__ == "__main__":
    main()
