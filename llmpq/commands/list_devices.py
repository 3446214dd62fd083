"""llmpq devices: the known device types, and the devices of this machine."""

import click
from rich.table import Column, Table

from llmpq.commands import completions
from llmpq.commands.output import notice, output_options, print_json, stdout
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.devices import DeviceType, device_types
from llmpq.hardware.support import support
from llmpq.precision import PRECISIONS
from llmpq.units import format_bandwidth, format_bytes


@click.command("devices")
@output_options
@click.option(
    "--engine", default="local", show_default=True, shell_complete=completions.engines, help="Whose supported precisions to show."
)
def command(as_json: bool, engine: str) -> None:
    """Known device types with their figures, and the devices of this machine."""
    here = Cluster.discover()
    if as_json:
        print_json({"types": list(device_types().values()), "local": here})
        return
    table = Table(Column("type", no_wrap=True), "memory", "bandwidth", "16-bit peak", "precisions", "source")
    for kind in device_types().values():
        table.add_row(
            kind.name,
            format_bytes(kind.memory_bytes),
            format_bandwidth(kind.bandwidth_bytes_per_s),
            _peak(kind),
            _precisions(engine, kind),
            kind.source,
        )
    stdout().print(table)
    stdout().print("this machine: " + ", ".join(f"{d.name} ({format_bytes(d.memory_bytes)})" for d in here.devices))
    for text in here.notices:
        notice(text)


def _peak(kind: DeviceType) -> str:
    flops = dict(kind.flops)
    best = max(flops.get("bf16", 0.0), flops.get("fp16", 0.0), flops.get("fp32", 0.0))
    return f"{best / 1e12:.3g} TFLOPS"


def _precisions(engine: str, kind: DeviceType) -> str:
    return " ".join(name for name, precision in PRECISIONS.items() if support(engine, kind, precision).level != "unsupported")
