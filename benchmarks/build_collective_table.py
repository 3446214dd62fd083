"""Build llmpq/data/links/collectives.yaml from measured all-reduces and all-gathers among the GPUs of one host.

python benchmarks/build_collective_table.py FOLDER        with FOLDER/{a100_sxm,h100_sxm,l40s}_nccl2.27.3.csv.gz of AIConfigurator

Message sizes are in elements of two bytes, latencies in milliseconds. Every size is kept, with the median of its measurements.
"""

import csv
import gzip
import sys
from pathlib import Path
from statistics import median

import yaml

OUTPUT = Path(__file__).parent.parent / "llmpq" / "data" / "links" / "collectives.yaml"
ELEMENT_BYTES = 2
LARGEST_BYTES = 1 << 28
KINDS = {
    "nvlink-a100": ("a100_sxm", "A100 of a DGX, NVLink 3 by NVSwitch", ["A100-40", "A100-80"]),
    "nvlink-h100": ("h100_sxm", "H100 of a DGX, NVLink 4 by NVSwitch", ["H100", "H200"]),
    "pcie-l40s": ("l40s", "L40S of one host, PCIe 4.0 with peer access", ["L40S"]),
}
OPERATIONS = {"all-reduce": "all_reduce", "all-gather": "all_gather"}
RANKS = (2, 4, 8)
HEADER = """\
# Collectives of NCCL 2.27.3 among the GPUs of one host, by bytes of the whole message: ai-dynamo/aiconfigurator, Apache-2.0
# (llmpq/data/silicon/LICENSE). Written by benchmarks/build_collective_table.py.
"""


def measured(folder: Path, system: str, operation: str, ranks: int) -> dict[int, float]:
    """Bytes -> seconds."""
    found: dict[int, list[float]] = {}
    with gzip.open(folder / f"{system}_nccl2.27.3.csv.gz", "rt") as lines:
        for row in csv.DictReader(lines):
            if (row["op_name"], row["nccl_dtype"], row["num_gpus"]) == (operation, "half", str(ranks)):
                found.setdefault(int(row["message_size"]) * ELEMENT_BYTES, []).append(float(row["latency"]) / 1e3)
    return {nbytes: median(times) for nbytes, times in sorted(found.items()) if nbytes <= LARGEST_BYTES}


def rising(seconds: list[float]) -> list[float]:
    """A longer message never takes less."""
    return [max(seconds[: place + 1]) for place in range(len(seconds))]


def main(folder: Path) -> None:
    kinds: dict[str, object] = {}
    for name, (system, what, devices) in KINDS.items():
        tables = {kept: {r: measured(folder, system, told, r) for r in RANKS} for kept, told in OPERATIONS.items()}
        sizes = list(tables["all-reduce"][2])
        us = {
            kept: {ranks: [round(s * 1e6, 1) for s in rising([of[size] for size in sizes])] for ranks, of in by_ranks.items()}
            for kept, by_ranks in tables.items()
        }
        kinds[name] = {"what": what, "devices": devices, "bytes": sizes, "us": us}
    OUTPUT.write_text(HEADER + yaml.safe_dump({"kinds": kinds}, sort_keys=False, default_flow_style=None, width=130))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
