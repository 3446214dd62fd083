"""Build llmpq/data/links/links.yaml from measured transfers between two GPUs.

python benchmarks/build_link_table.py FOLDER        with FOLDER/send_recv_{a100_dgx,h100_dgx,a40_pairwise_nvlink}.csv.gz of vidur

A kind keeps the median of what was measured around every power of two; its error and its band are those of all measurements, each
predicted from the kept sizes that it is no part of.
"""

import csv
import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median, quantiles

import yaml

from llmpq.hardware.link_table import transfer_s

OUTPUT = Path(__file__).parent.parent / "llmpq" / "data" / "links" / "links.yaml"
AROUND = 1.2  # measurements within this factor of a power of two are its own
SIZES = tuple(2048 << power for power in range(16))
KINDS = {
    "nvlink-a100": ("send_recv_a100_dgx", "2", "two A100 of a DGX, NVLink 3 by NVSwitch", ["A100-40", "A100-80"]),
    "nvlink-h100": ("send_recv_h100_dgx", "2", "two H100 of a DGX, NVLink 4 by NVSwitch", ["H100", "H200"]),
    "host-a40": ("send_recv_a40_pairwise_nvlink", "2", "two A40 of one host, at the rate of PCIe", ["A40"]),
    "between-a100-dgx": ("send_recv_a100_dgx", "1", "A100 of two DGX", []),
    "between-h100-dgx": ("send_recv_h100_dgx", "1", "H100 of two DGX", []),
    "between-a40-hosts": ("send_recv_a40_pairwise_nvlink", "1", "A40 of two hosts", []),
}
Row = tuple[int, float]  # bytes, seconds


def rows_of(folder: Path, file: str, devices_per_node: str) -> list[Row]:
    with gzip.open(folder / f"{file}.csv.gz", "rt") as lines:
        rows = [row for row in csv.DictReader(lines) if row["devices_per_node"] == devices_per_node]
    return sorted((int(row["bytes"]), float(row["median_ms"]) / 1e3) for row in rows)


def kept(rows: list[Row]) -> tuple[Row, ...]:
    """The median at every size that was measured; a longer message never takes less."""
    found: list[Row] = []
    for size in SIZES:
        seconds = [taken for nbytes, taken in rows if size / AROUND <= nbytes <= size * AROUND]
        if seconds:
            found.append((size, max(median(seconds), found[-1][1] if found else 0.0)))
    return tuple(found)


def ratios(rows: list[Row], points: tuple[Row, ...]) -> Iterator[float]:
    """Measured over predicted, where the measurement is no part of a kept size."""
    for nbytes, seconds in rows:
        if all(not size / AROUND <= nbytes <= size * AROUND for size, _ in points):
            yield seconds / transfer_s(points, nbytes)


def main(folder: Path) -> None:
    kinds = {}
    for name, (file, per_node, what, devices) in KINDS.items():
        rows = rows_of(folder, file, per_node)
        points = kept(rows)
        found = list(ratios(rows, points))
        twentieths = quantiles(found, n=20, method="inclusive")
        kinds[name] = {
            "what": what,
            "devices": devices,
            "bytes": [size for size, _ in points],
            "us": [round(seconds * 1e6, 1) for _, seconds in points],
            "band": [round(min(1.0, twentieths[0]), 2), round(max(1.0, twentieths[-1]), 2)],
            "mean_error_percent": round(100 * fmean(abs(1 / ratio - 1) for ratio in found), 1),
        }
        print(name, {key: kinds[name][key] for key in ("band", "mean_error_percent")}, len(found), "measurements")
    OUTPUT.write_text(HEADER + yaml.safe_dump({"kinds": kinds}, sort_keys=False, default_flow_style=None, width=130))


HEADER = """\
# One message between two GPUs (send and recv of NCCL, medians), by bytes: microsoft/vidur, MIT (LICENSE), measured with
# torch.distributed for the simulator of MLSys 2024. Written by benchmarks/build_link_table.py.
"""

if __name__ == "__main__":
    main(Path(sys.argv[1]))
