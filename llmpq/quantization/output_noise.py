"""Output noise: how far rounding moves what the linears of a layer compute, from one forward pass over the calibration text."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmpq.precision import PARTS, Part, Precision
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.fake_quantization import weight_of
from llmpq.quantization.rounding import round_activation
from llmpq.quantization.scoring import Measurements

Energy = Callable[[Tensor], float]  # matrix M [rows, in_features] -> E|M x|^2, or an estimate of it
Key = tuple[Part, str, str]  # of a linear, or of one of the pieces of all experts
Pair = tuple[float, float]  # noise and signal, summed over tokens


@dataclass(frozen=True, slots=True)
class Noise:
    """A figure for every layer at one precision, and for its parts alone; seconds: what computing it took."""

    layers: tuple[float, ...]
    attention: tuple[float, ...]
    mlp: tuple[float, ...]
    seconds: float

    def of(self, layer: int, part: Part | None) -> float:
        """The figure of a part of a layer; None: of the whole."""
        return {None: self.layers, "attention": self.attention, "mlp": self.mlp}[part][layer]


def variance_energy(inputs: Tensor) -> Energy:
    """From the second moment of every input alone, as if they were uncorrelated. inputs: [tokens, in_features]."""
    moments = inputs.square().mean(0)
    return lambda matrix: float((matrix.square() @ moments).sum())


def hessian_energy(inputs: Tensor) -> Energy:
    """tr(M H M^T) with H = E[x x^T], half of the Hessian of the squared error of the output, which GPTQ lowers
    (arXiv 2210.17323, equation 1). inputs: [tokens, in_features]."""
    hessian = inputs.T @ inputs / len(inputs)
    return lambda matrix: float(((matrix @ hessian) * matrix).sum())


ENERGIES: dict[str, Callable[[Tensor], Energy]] = {"variance": variance_energy, "hessian": hessian_energy}


def output_noise(measured: Measurements, indicator: str, precisions: Sequence[Precision]) -> dict[str, Noise]:
    """Precision name -> how much noise each layer adds to the hidden state, relative to it.

    A linear's noise-to-signal ratio, summed over the layer's linears, times the share of the hidden state after the layer that
    the layer itself has written: E|after - before|^2 / E|after|^2. Experts that were one parameter are one linear, whose noise
    and signal are those of all tokens at the expert that each was routed to.
    """
    started = time.perf_counter()
    energy_of, model, graph = ENERGIES[indicator], measured.model, measured.graph
    energies = {precision.name: [dict[Key, Pair]() for _ in graph.layer_names] for precision in precisions}
    written = [0.0] * graph.num_layers

    def observe(layer: int, path: str, key: Key) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].detach().float().flatten(0, -2)
            energy, weight = energy_of(x), weight_of(model, path)
            for precision in precisions:
                found = energies[precision.name][layer]
                noise, signal = found.get(key, (0.0, 0.0))
                more = noise_and_signal(weight, x, energy, precision)
                found[key] = (noise + len(x) * more[0], signal + len(x) * more[1])

        return hook

    def compare(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before, after = layer_output(args or kwargs["hidden_states"]), layer_output(output)
            written[layer] = float((after - before).square().sum() / after.square().sum().clamp(min=1e-30))

        return hook

    handles = [
        model.get_submodule(f"{name}.{stored.name}").register_forward_pre_hook(observe(layer, f"{name}.{stored.name}", key))
        for layer, name in enumerate(graph.layer_names)
        for linear in graph.kind_of(layer).linears
        if linear.is_quantizable
        for stored in linear.stored
        for key in [(linear.part, linear.name, stored.name.rpartition(".")[2])]
    ]
    handles += [
        model.get_submodule(name).register_forward_hook(compare(layer), with_kwargs=True)
        for layer, name in enumerate(graph.layer_names)
    ]
    _run_without_head(model, measured.windows, handles)
    seconds = round((time.perf_counter() - started) / len(precisions), 3)
    return {name: _noise(layers, written, seconds) for name, layers in energies.items()}


def _noise(layers: Sequence[Mapping[Key, Pair]], written: Sequence[float], seconds: float) -> Noise:
    """Of a part of a layer the ratios of its linears; of a layer the sum of its parts."""

    def ratio(part: Part) -> tuple[float, ...]:
        return tuple(
            share * sum(noise / max(signal, 1e-30) for key, (noise, signal) in found.items() if key[0] == part)
            for found, share in zip(layers, written)
        )

    attention, mlp = map(ratio, PARTS)
    return Noise(tuple(map(sum, zip(attention, mlp))), attention, mlp, seconds)


def layer_output(value: Any) -> Tensor:
    """The hidden state in what a layer returns or is called with: the tensor itself, or the first of several."""
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


def _run_without_head(model: nn.Module, windows: Tensor, handles: list[RemovableHandle]) -> None:
    """Every window at once through embedding and layers, the hooks removed at the end."""
    backbone: Any = model.base_model
    try:
        with torch.inference_mode():
            backbone(input_ids=windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def noise_and_signal(weight: Tensor, inputs: Tensor, energy: Energy, precision: Precision) -> tuple[float, float]:
    """E|dW x|^2 and E|W x|^2 of one linear; rounded activations add their own noise. No noise at 16 bits."""
    signal = energy(weight)
    if not precision.is_quantized:
        return 0.0, signal
    noise = energy(weight - quantize_clipped(weight, precision).dequantize())
    if precision.activation_bits < 16:
        rounding = (round_activation(inputs, precision) - inputs).square().mean(0)
        noise += float((weight.square() @ rounding).sum())
    return noise, signal
