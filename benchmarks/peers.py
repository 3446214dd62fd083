"""Peers: our GPTQ beside llmcompressor's and gptqmodel's, our allocation beside AutoRound's, each in an environment of its own.

python benchmarks/peers.py install | gptq | scheme | packing [--peer NAME] [--model demo] [--folder build/peers]
"""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from machine import machine
from quality_allocations import OPTIONS, Report, allocate, layer_sizes
from quantizers import difference, gptq, grouped, write
from rich.console import Console

from llmpq.checkpoint.loss_increase import Losses, losses_of
from llmpq.checkpoint.reference import reference_model
from llmpq.frontend.models import read_text, resolve, trace_source
from llmpq.frontend.texts import CALIBRATE, REPORT, read_tokens
from llmpq.layer_option import parse_options
from llmpq.precision import PRECISIONS
from llmpq.program import Calibration
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.fake_quantization import quantizable_linears, weight_of
from llmpq.quantization.indicators import table_of
from llmpq.quantization.original import load_original
from llmpq.quantization.quantizers import Rounding
from llmpq.quantization.scoring import Measurements

RESULTS = Path(__file__).parent / "results" / "peers.json"
SCRIPTS = Path(__file__).parent / "peers"
TORCH = "torch==2.13.0"
INSTALLED: dict[str, tuple[tuple[str, ...], ...]] = {  # arguments of pip, call by call
    "llmcompressor": (("llmcompressor==0.14.0", TORCH),),
    "gptqmodel": ((TORCH, "setuptools", "wheel", "numpy"), ("--no-build-isolation", "gptqmodel>=7.6,<7.7", TORCH)),
    "auto-round": (("auto-round", TORCH),),
}
GPTQ_PEERS = ("llmcompressor", "gptqmodel")
OPTION, GROUP = "w4a16", 64  # 64 divides every linear of the small models
AVERAGES = (3.5, 4.0, 4.5, 5.0)
TOKENS = 8192  # of the report text


def run(command: Sequence[str | Path], **environment: str) -> str | None:
    """None, or the last lines of what went wrong."""
    outcome = subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ | environment, check=False)
    return None if outcome.returncode == 0 else " | ".join((outcome.stderr or outcome.stdout).strip().splitlines()[-3:])


def python_of(folder: Path, peer: str) -> Path:
    return folder.resolve() / peer / "bin" / "python"


def install_peer(folder: Path, peer: str) -> str | None:
    """None when its environment is there and imports; else the reason."""
    python = python_of(folder, peer)
    failed = None if python.exists() else run([sys.executable, "-m", "venv", folder / peer])
    for arguments in INSTALLED[peer]:
        failed = failed or run([python, "-m", "pip", "install", "--quiet", *arguments])
    return failed or run([python, "-c", f"import {peer.replace('-', '_')}"])


def script(folder: Path, peer: str, name: str, *arguments: object) -> str | None:
    python = python_of(folder, peer)
    if not python.exists():
        return f"not installed: python benchmarks/peers.py install --peer {peer}"
    return run([python, SCRIPTS / name, *map(str, arguments)], OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))


def losses_with(directory: Path, weights: Mapping[str, torch.Tensor], token_ids: Sequence[int]) -> Losses:
    """Of the original with some linears' weights replaced."""
    model = load_original(directory)
    with torch.inference_mode():
        for path, weight in weights.items():
            weight_of(model, path).copy_(weight)
        return losses_of(model, token_ids)


def compare_gptq(directory: Path, folder: Path, peers: Sequence[str]) -> dict[str, Any]:
    """Increase of the loss on the report text by each GPTQ on the same windows of the same text, and the paired differences."""
    from safetensors.torch import load_file

    calibrate, report = read_tokens(directory, CALIBRATE)[0], read_tokens(directory, REPORT)[0][:TOKENS]
    quantizer = gptq(directory, calibrate)
    windows, original = quantizer.windows(1024), losses_of(load_original(directory), report)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as temporary, grouped(OPTION, GROUP):
        ours = {}
        for name, used in (("rtn", Rounding()), ("llmpq", quantizer)):
            write(directory, Path(temporary) / name, OPTION, used)
            ours[name] = losses_of(reference_model(Path(temporary) / name), report)
            found[name] = {"increase": asdict(difference(ours[name], original))}
        (Path(temporary) / "windows.json").write_text(json.dumps(windows.tolist()))
        for peer in peers:
            out, started = Path(temporary) / f"{peer}.safetensors", time.perf_counter()
            name = f"{peer.replace('-', '_')}_gptq.py"
            bits = PRECISIONS[OPTION].num_bits
            failed = script(folder, peer, name, directory, Path(temporary) / "windows.json", bits, GROUP, out)
            if failed is not None:
                found[peer] = {"failed": failed}
                continue
            losses = losses_with(directory, load_file(out), report)
            increase = difference(losses, original)
            beyond = difference(ours["llmpq"], losses)
            seconds = round(time.perf_counter() - started, 1)
            found[peer] = {"increase": asdict(increase), "llmpq_over_it": asdict(beyond), "seconds": seconds}
    loss = float(torch.cat([torch.tensor(window) for window in original.windows]).mean())
    return {"option": OPTION, "group_size": GROUP, "windows": list(windows.shape), "original_loss": loss, "quantizers": found}


def compare_schemes(model: str, directory: Path, folder: Path) -> dict[str, Any]:
    """Loss of AutoScheme's bits for every linear beside our mixtures of as many average bits, all rounded to nearest by us."""
    graph = trace_source(resolve(model, weights=True))[1]
    ids, name = read_tokens(directory, CALIBRATE)
    measured = Measurements.of(graph, Calibration(directory, ids, name))
    report, rows = Report(directory, graph, TOKENS), []
    plain = Losses(tuple(tuple(window.tolist()) for window in report.of(("16",) * graph.num_layers)))
    with TemporaryDirectory() as temporary:
        text, out = Path(temporary) / "text.txt", Path(temporary) / "bits.json"
        text.write_text(read_text(CALIBRATE)[0])
        for average in AVERAGES:
            failed = script(folder, "auto-round", "autoround_scheme.py", directory, text, average, GROUP, out)
            if failed is not None:
                return {"failed": failed}
            scheme = _scheme_losses(report, json.loads(out.read_text()))
            row: dict[str, Any] = {"average_bits": average, **scheme["head"]}
            row["autoscheme"] = asdict(difference(scheme["losses"], plain))
            for granularity in ("layer", "part"):
                table = table_of("fisher", measured, parse_options(OPTIONS[:-1], granularity))
                options = allocate(table, layer_sizes(graph), scheme["head"]["real_bits"])
                ours = Losses(tuple(tuple(window.tolist()) for window in report.of(options)))
                over = asdict(difference(ours, scheme["losses"]))
                row[granularity] = {"increase": asdict(difference(ours, plain)), "over_autoscheme": over}
            rows.append(row)
    return {"tokens": TOKENS, "rows": rows}


def _scheme_losses(report: Report, bits: Mapping[str, int]) -> dict[str, Any]:
    precisions = {16: None, **{PRECISIONS[option].num_bits: PRECISIONS[option] for option in OPTIONS[:-1]}}
    sizes, weights = 0, {}
    total = 0
    for _, path, linear in quantizable_linears(report.graph):
        chosen = bits.get(path, 16)
        size = linear.in_features * linear.out_features
        sizes, total = sizes + size, total + size * chosen
        precision = precisions[chosen]
        if precision is not None:
            weights[path] = quantize_clipped(weight_of(report.model, path), precision).dequantize()
    head = {"real_bits": total / sizes, "bits": dict(bits)}
    return {"head": head, "losses": losses_with(report.directory, weights, report.token_ids)}


def packing_tests() -> dict[str, Any]:
    """compressed-tensors' own pack tests, from its source archive, with our functions in the place of its own."""
    version = metadata.version("compressed-tensors")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wanted = f"compressed-tensors=={version}"
        archive = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", folder, wanted]
        failed = run(archive)
        if failed is not None:
            return {"version": version, "failed": failed}
        with tarfile.open(next(folder.glob("*.tar.gz"))) as tar:
            tar.extractall(folder, filter="data")
        tests = next(folder.glob("*/tests/test_compressors/test_pack_quant.py"))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "our_packing", "--rootdir", folder, tests]
        paths = os.pathsep.join(map(str, (SCRIPTS, SCRIPTS.parent.parent)))
        outcome = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False
        )
        lines = outcome.stdout.strip().splitlines()
        failures = [line.partition("::")[2] for line in lines if line.startswith("FAILED")]
        return {"version": version, "summary": lines[-1] if lines else outcome.stderr[-300:], "failed": failures}


def keep(section: str, value: Mapping[str, Any]) -> None:
    """Writes one section of the results; the others stay."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, section: {"machine": machine(), **value}}, indent=1) + "\n")
    Console().print_json(json.dumps(value))


@click.command()
@click.argument("part", type=click.Choice(["install", "gptq", "scheme", "packing"]))
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(INSTALLED)), help="These alone; all by default.")
@click.option("--model", default="demo", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/peers"), show_default=True, help="Environments.")
def main(part: str, peers: tuple[str, ...], model: str, folder: Path) -> None:
    """Install peers, or compare with those that are installed, and write results/peers.json."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    directory = resolve(model, weights=True).directory
    assert directory is not None
    if part == "install":
        keep("install", {peer: install_peer(folder, peer) or "installed" for peer in peers or INSTALLED})
    elif part == "packing":
        keep("packing", packing_tests())
    elif part == "gptq":
        keep("gptq", compare_gptq(directory, folder, [peer for peer in peers or GPTQ_PEERS if peer in GPTQ_PEERS]))
    else:
        keep("scheme", compare_schemes(model, directory, folder))


if __name__ == "__main__":
    main()
