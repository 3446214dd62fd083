"""CalibratedLayers: layers quantized in order by GPTQ, each for what the quantized layers before it compute."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmpq.errors import QuantizationError
from llmpq.graph import LayerGraph, Linear
from llmpq.precision import Precision
from llmpq.quantization.activations import Activations
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.fake_quantization import weight_of
from llmpq.quantization.gptq import gptq
from llmpq.quantization.hessian import Factor, Hessian
from llmpq.quantization.layer_quantizer import LayerReport, LayerResult
from llmpq.quantization.packing import suffixes, unpack
from llmpq.quantization.quantizers import Gptq
from llmpq.quantization.rounding import QuantizedWeight, require_quantizable, round_inputs
from llmpq.quantization.smoothing import smooth
from llmpq.quantization.streamed_layers import StreamedLayers

FEWEST_TOKENS = 32  # an expert that saw fewer has no Hessian worth the name: its weights are rounded to nearest
HESSIAN_BYTES = 1 << 32  # at once, of a layer; a limit of ours: beyond it the layer runs once more over the text
WIDE = 4  # bytes of an element in fp32


class CalibratedLayers:
    """A LayerQuantizer.

    precisions: full module name -> precision; tensors: the model's, by name, 16-bit ones as they will be stored. Scales are in
    `dtype`; `directory` takes activations that do not fit in memory.
    """

    def __init__(
        self,
        quantizer: Gptq,
        graph: LayerGraph,
        precisions: Mapping[str, Precision],
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        directory: Path,
    ) -> None:
        self._activations = Activations(directory, quantizer.limit_bytes)
        self._smooth = quantizer.smooth
        self._graph, self._precisions, self._tensors, self._dtype = graph, precisions, tensors, dtype
        names, windows = graph.layer_names, quantizer.windows(graph.max_positions)
        self._run = StreamedLayers(quantizer.graph_module, names, windows, tensors, self._activations, quantizer.device)
        self._last = max((layer for layer in range(graph.num_layers) if self._linears(layer)), default=-1)

    @property
    def spilled_bytes(self) -> int:
        return self._activations.spilled_bytes

    def quantize(self, layer: int) -> LayerResult:
        """The quantized weights of a layer; nothing for a layer that stays at 16 bits."""
        linears, name = self._linears(layer), self._graph.layer_names[layer]
        if not linears:
            return LayerResult()
        with torch.no_grad():
            self._run.enter(name)
            module = self._run.layer(name, self._tensors, linears)
            changed = smooth(module, linears, self._run.call, self._run.num_windows, self._dtype) if self._smooth else {}
            _round_activations(module, linears)
            smoothed = {f"{name}.{parameter}": value for parameter, value in changed.items()}
            return self._calibrate(layer, module, linears, smoothed)

    def go_on(self, layer: int, stored: Mapping[str, Tensor]) -> None:
        """Runs the layer as stored, for the layers after it; nothing where no layer after it is quantized."""
        if layer >= self._last:
            return
        name = self._graph.layer_names[layer]
        with torch.no_grad():
            self._run.enter(name)
            linears = self._linears(layer)
            module = self._run.layer(name, _Dequantized(stored, self._precisions), linears)
            _round_activations(module, linears)
            self._run.leave(module)

    def round(self, weight: Tensor, precision: Precision, dtype: torch.dtype) -> QuantizedWeight:
        return quantize_clipped(weight, precision, dtype)

    def _linears(self, layer: int) -> dict[str, Precision]:
        """Name relative to the layer -> precision of the linears to quantize."""
        name = self._graph.layer_names[layer]
        paths = {linear.name: f"{name}.{linear.name}" for linear in self._kind_linears(layer)}
        return {path: self._precisions[full] for path, full in paths.items() if full in self._precisions}

    def _kind_linears(self, layer: int) -> tuple[Linear, ...]:
        return self._graph.kind_of(layer).stored

    def _calibrate(
        self, layer: int, module: nn.Module, linears: Mapping[str, Precision], smoothed: Mapping[str, Tensor]
    ) -> LayerResult:
        name = self._graph.layer_names[layer]
        groups: dict[str, list[str]] = {}
        for linear in self._kind_linears(layer):
            if linear.name in linears:
                groups.setdefault(linear.fusion_group, []).append(linear.name)
        weights: dict[str, QuantizedWeight] = {}
        error = signal = 0.0
        rounded: list[str] = []
        for members, hessian in self._hessians(module, groups):
            found = [weight_of(module, member) for member in members]
            _require_quantizable(dict(zip((f"{name}.{member}.weight" for member in members), found)), linears[members[0]])
            stacked = torch.cat(found)
            precision = linears[members[0]]
            if hessian.tokens < FEWEST_TOKENS:
                rounded += [f"{name}.{member}" for member in members]
                quantized = quantize_clipped(stacked, precision, self._dtype)
            else:
                factor = Factor.of(hessian.mean(), hessian.tokens)
                quantized = gptq(stacked, precision, factor, self._dtype)
                error += float(factor.loss(stacked - quantized.dequantize()).sum())
                signal += float(factor.loss(stacked).sum())
            weights |= zip((f"{name}.{member}" for member in members), _rows(quantized, [len(weight) for weight in found]))
        report = LayerReport(layer, error / signal if signal else 0.0, tuple(rounded), tuple(smoothed))
        return LayerResult(weights, smoothed, report)

    def _hessians(self, module: nn.Module, groups: Mapping[str, list[str]]) -> Iterator[tuple[list[str], Hessian]]:
        """(members of a group, Hessian of the input that they share, over all windows); as many at once as HESSIAN_BYTES hold."""
        for held in _batches({group: weight_of(module, members[0]).shape[1] for group, members in groups.items()}):
            found: dict[str, Hessian] = {}
            handles = []
            for group in held:
                weight = weight_of(module, groups[group][0])
                found[group] = Hessian(weight.shape[1], weight.device)
                handles.append(module.get_submodule(groups[group][0]).register_forward_pre_hook(_adder(found[group])))
            for window in range(self._run.num_windows):
                self._run.call(module, window)
            for handle in handles:
                handle.remove()
            for group in held:
                yield groups[group], found.pop(group)


class _Dequantized(Mapping[str, Tensor]):
    """Stored tensors under the names of the model: quantized modules become their weight."""

    def __init__(self, stored: Mapping[str, Tensor], precisions: Mapping[str, Precision]) -> None:
        self._stored, self._precisions = stored, precisions

    def __getitem__(self, name: str) -> Tensor:
        module = name.removesuffix(".weight")
        if module not in self._precisions:
            return self._stored[name]
        precision = self._precisions[module]
        parts = {suffix: self._stored[f"{module}.{suffix}"] for suffix in suffixes(precision)}
        return unpack(parts, precision).dequantize()

    def __contains__(self, name: object) -> bool:
        return str(name).removesuffix(".weight") in self._precisions or name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _batches(columns: Mapping[str, int]) -> Iterator[list[str]]:
    """Groups, in order, whose Hessians are together no larger than HESSIAN_BYTES, or alone. columns: of each group's input."""
    held: list[str] = []
    for group, size in columns.items():
        if held and WIDE * (size**2 + sum(columns[other] ** 2 for other in held)) > HESSIAN_BYTES:
            yield held
            held = []
        held = [*held, group]
    if held:
        yield held


def _require_quantizable(weights: Mapping[str, Tensor], precision: Precision) -> None:
    for name, weight in weights.items():
        try:
            require_quantizable(weight, precision)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error


def _rows(quantized: QuantizedWeight, counts: list[int]) -> Iterator[QuantizedWeight]:
    """The weight cut into pieces of so many rows."""
    start = 0
    for count in counts:
        rows = slice(start, start + count)
        yield QuantizedWeight(quantized.precision, quantized.codes[rows].clone(), quantized.scale[rows].clone())
        start += count


def _round_activations(layer: nn.Module, linears: Mapping[str, Precision]) -> None:
    for path, precision in linears.items():
        if precision.activation_bits < 16:
            layer.get_submodule(path).register_forward_pre_hook(round_inputs(precision))


def _adder(hessian: Hessian) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        hessian.add(inputs[0])

    return add
