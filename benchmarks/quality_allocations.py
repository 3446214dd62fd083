"""Allocations: mixtures of precisions at equal average bits, by indicator and granularity, and what they really lose."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import gcd
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from quantizers import gptq, write

from llmpq.checkpoint.loss_increase import Losses, losses_of
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.reference import reference_model
from llmpq.evaluation import Estimate, estimate
from llmpq.frontend.texts import CALIBRATE, REPORT, read_tokens
from llmpq.graph import LayerGraph
from llmpq.layer_option import LayerOption, parse_option, parse_options
from llmpq.precision import PARTS
from llmpq.quantization.fake_quantization import fake_quantized
from llmpq.quantization.indicators import table_of
from llmpq.quantization.original import load_original
from llmpq.quantization.score_store import score_store
from llmpq.quantization.scoring import Measurements
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import to_json

OPTIONS = ("w3a16", "w4a16", "w8a16", "16")
AVERAGES = (3.5, 4.0, 4.5, 5.0, 6.0)
RANDOM_DRAWS = 2
INDICATORS = {"layer": ("fisher", "measured", "hessian", "variance"), "part": ("fisher", "measured")}

Sizes = tuple[int, int]  # weights of the attention and of the mlp of a layer


@dataclass(frozen=True, slots=True)
class Allocation:
    """An option for every layer, what chose it, its predicted and its real increase of the loss, nats per token."""

    name: str
    granularity: str
    quantizer: str
    average_bits: float
    weight_bytes: int
    options: tuple[str, ...]
    predicted: float | None
    got: Estimate


def allocate(table: SensitivityTable, sizes: Sequence[Sizes], average_bits: float) -> tuple[str, ...]:
    """The options of least total sensitivity with at most that many bits per weight, exactly, by dynamic programming.

    Scales are not counted, which 3, 4 and 8 bits have the same number of.
    """
    unit = gcd(*(size for layer in sizes for size in layer))
    room = int(average_bits * sum(map(sum, sizes)) / unit + 1e-9)
    options = [parse_option(name) for name in table.options]
    best: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
    for row, layer in zip(table.rows, sizes):
        after: dict[int, tuple[float, tuple[str, ...]]] = {}
        for used, (loss, chosen) in best.items():
            for option, value in zip(options, row):
                bits = used + _bits(option, layer) // unit
                if bits <= room and (bits not in after or loss + value < after[bits][0]):
                    after[bits] = (loss + value, (*chosen, option.name))
        best = after
    return min(best.values())[1]


def _bits(option: LayerOption, layer: Sizes) -> int:
    return sum(option.of(part).num_bits * size for part, size in zip(PARTS, layer))


def layer_sizes(graph: LayerGraph) -> list[Sizes]:
    """Quantizable weights of every layer."""
    kinds = [graph.kind_of(layer) for layer in range(graph.num_layers)]
    return [(kind.part_size("attention"), kind.part_size("mlp")) for kind in kinds]


def layer_bytes(graph: LayerGraph, options: Sequence[str]) -> int:
    return sum(graph.kind_of(layer).weight_bytes(parse_option(option)) for layer, option in enumerate(options))


class Report:
    """Losses on the report text, of the original and of allocations, each measured once."""

    def __init__(self, directory: Path, graph: LayerGraph, tokens: int) -> None:
        self.directory, self.graph, self.model = directory, graph, load_original(directory)
        self.token_ids = read_tokens(directory, REPORT)[0][:tokens]
        self.store = score_store(Checkpoint.open(directory), self.token_ids)

    def of(self, options: tuple[str, ...], quantizer: str = "rtn") -> list[torch.Tensor]:
        """Per window the loss of every token."""
        name = f"benchmark-{quantizer}-{hashlib.sha256(','.join(options).encode()).hexdigest()[:16]}"
        measure = self._rounded if quantizer == "rtn" else self._by_gptq
        return [torch.tensor(window) for window in self.store.get_or(name, Losses, lambda: measure(options)).windows]

    def difference(self, mine: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Estimate:
        """How far one loss lies above the other, with the standard error of the paired difference."""
        return estimate([left - right for left, right in zip(mine, other, strict=True)])

    def _rounded(self, options: tuple[str, ...]) -> Losses:
        chosen = {layer: parse_option(option) for layer, option in enumerate(options)}
        with torch.inference_mode(), fake_quantized(self.model, self.graph, chosen):
            return losses_of(self.model, self.token_ids)

    def _by_gptq(self, options: tuple[str, ...]) -> Losses:
        calibrate = read_tokens(self.directory, CALIBRATE)[0]
        with TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            write(self.directory, out, options, gptq(self.directory, calibrate))
            return losses_of(reference_model(out), self.token_ids)


def allocations(measured: Measurements, tokens: int) -> dict[str, Any]:
    """Uniform precisions and mixtures of every indicator at average bits: rounded to nearest with clipping, the uniform ones and
    those of the first indicator by GPTQ as well."""
    graph, sizes = measured.graph, layer_sizes(measured.graph)
    report, layers = Report(measured.calibration.checkpoint, graph, tokens), graph.num_layers
    plain, rows = report.of(("16",) * layers), []

    def add(name: str, granularity: str, average: float, options: tuple[str, ...], predicted: float | None) -> None:
        for quantizer in ("rtn", "gptq") if name in ("uniform", INDICATORS["layer"][0]) else ("rtn",):
            got = report.difference(report.of(options, quantizer), plain)
            said = predicted if quantizer == "rtn" else None
            rows.append(Allocation(name, granularity, quantizer, average, layer_bytes(graph, options), options, said, got))

    for option in OPTIONS[:-1]:
        add("uniform", "layer", float(parse_option(option).of("mlp").num_bits), (option,) * layers, None)
    for (name, granularity), table in tables(measured).items():
        for average in AVERAGES:
            options = allocate(table, sizes, average)
            add(name, granularity, average, options, None if name.startswith("random") else table.total(options))
    return {"tokens": len(report.token_ids), "rows": [to_json(each) for each in rows], "against": against(report, rows)}


def tables(measured: Measurements) -> dict[tuple[str, str], SensitivityTable]:
    """(indicator, granularity) -> table; the control at granularity layer."""
    found = {
        (indicator, granularity): table_of(indicator, measured, parse_options(OPTIONS, granularity))
        for granularity, indicators in INDICATORS.items()
        for indicator in indicators
    }
    draws = {(f"random {seed}", "layer"): shuffled(found["fisher", "layer"], seed) for seed in range(RANDOM_DRAWS)}
    return found | draws


def shuffled(table: SensitivityTable, seed: int) -> SensitivityTable:
    """The control: the same figures given to layers at random."""
    return replace(table, rows=tuple(random.Random(seed).sample(table.rows, len(table.rows))), errors=None)


def against(report: Report, rows: Sequence[Allocation]) -> list[dict[str, Any]]:
    """Paired differences at equal bits: every mixture to the uniform precision, to the random ones and, of parts, to that of
    layers; GPTQ to rounding."""
    found = []
    for each in (each for each in rows if not each.name.startswith("random")):
        for other in (other for other in rows if other.average_bits == each.average_bits and other != each):
            if _compared(each, other):
                losses = (report.of(one.options, one.quantizer) for one in (each, other))
                head = {"average_bits": each.average_bits, "name": title(each), "other": title(other)}
                found.append({**head, **asdict(report.difference(*losses))})
    return found


def _compared(each: Allocation, other: Allocation) -> bool:
    if each.quantizer != other.quantizer:
        return each.quantizer == "gptq" and (each.name, each.granularity) == (other.name, other.granularity)
    if other.name == "uniform" or other.name.startswith("random"):
        return each.name != "uniform"
    return each.name == other.name and (each.granularity, other.granularity) == ("part", "layer")


def title(allocation: Allocation) -> str:
    """For instance "fisher, parts, gptq"."""
    granularity = ("parts",) if allocation.granularity == "part" else ()
    return ", ".join((allocation.name, *granularity, *(() if allocation.quantizer == "rtn" else (allocation.quantizer,))))
