"""The Fisher indicator: rounding noise as the loss feels it, from gradients of one forward and one backward pass."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmpq.fx.experts import RoutedExperts
from llmpq.precision import PARTS, Part, Precision
from llmpq.quantization.clipping import quantize_clipped
from llmpq.quantization.fake_quantization import quantizable_linears, weight_of
from llmpq.quantization.output_noise import Noise, layer_output
from llmpq.quantization.rounding import QuantizedWeight, round_activation
from llmpq.quantization.scoring import Measurements

SEED = 0


def fisher_noise(measured: Measurements, precisions: Sequence[Precision]) -> dict[str, Noise]:
    """Precision name -> expected divergence of every layer, nats per token.

    To second order the divergence is 1/2 E[(g . n)^2]: n what rounding adds to the output of a linear, g the gradient there of
    the loss on tokens drawn from the model's own predictions, whose covariance is the Fisher information. Summed over the
    linears of a layer, or of a part of it, within a token; what tokens share with each other is left out.
    """
    started = time.perf_counter()
    model, graph = measured.model, measured.graph
    model.requires_grad_(False)
    keys: list[tuple[str, Part | None]] = [(precision.name, part) for precision in precisions for part in (None, *PARTS)]
    totals = {key: [0.0] * graph.num_layers for key in keys}
    draw = torch.Generator().manual_seed(SEED)
    rounded = {
        (path, precision): quantize_clipped(weight_of(model, path), precision)
        for _, path, _ in quantizable_linears(graph)
        for precision in precisions
    }
    for window in measured.windows:
        seen = _backward(model, [path for _, path, _ in quantizable_linears(graph)], graph.layer_names[0], window, draw)
        for precision in precisions:
            products: dict[tuple[int, Part | None], Tensor] = {}
            for layer, path, linear in quantizable_linears(graph):
                if path in seen:
                    product = _felt(weight_of(model, path), rounded[path, precision], seen[path], len(window))
                    for key in ((layer, None), (layer, linear.part)):
                        products[key] = products[key] + product if key in products else product
            for (layer, part), product in products.items():
                totals[precision.name, part][layer] += float(product.square().mean()) / 2 / len(measured.windows)
    seconds = round((time.perf_counter() - started) / len(precisions), 3)
    found = {key: tuple(figures) for key, figures in totals.items()}
    names = [precision.name for precision in precisions]
    return {name: Noise(found[name, None], found[name, "attention"], found[name, "mlp"], seconds) for name in names}


@dataclass(frozen=True, slots=True)
class Seen:
    """Of a linear that ran: inputs [rows, in], gradient of the output [rows, out]; tokens: which each row is of, None: all."""

    inputs: Tensor
    gradient: Tensor
    tokens: Tensor | None


def _felt(weight: Tensor, rounded: QuantizedWeight, seen: Seen, count: int) -> Tensor:
    """g . n of each of `count` tokens: n = W_q x_q - W x, nothing for tokens that an expert does not see."""
    inputs = seen.inputs
    if rounded.precision.activation_bits < 16:
        noise = round_activation(inputs, rounded.precision) @ rounded.dequantize().T - inputs @ weight.T
    else:
        noise = inputs @ (rounded.dequantize() - weight).T
    felt = (seen.gradient * noise).sum(-1)
    return felt if seen.tokens is None else torch.zeros(count).index_add_(0, seen.tokens, felt)


def _backward(model: nn.Module, paths: Sequence[str], first_layer: str, window: Tensor, draw: torch.Generator) -> dict[str, Seen]:
    """Path -> what the linears that ran on this window saw."""
    inputs: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer_output(args or kwargs["hidden_states"]).requires_grad_(True)

    handles = [model.get_submodule(first_layer).register_forward_pre_hook(start, with_kwargs=True)]
    for owner, experts in model.named_modules():
        if isinstance(experts, RoutedExperts):

            def route(module: RoutedExperts, args: tuple[Any, ...], owner: str = owner) -> None:
                tokens.update({f"{owner}.{found.expert}": found.tokens for found in module.routes(*args[:2])})

            handles.append(experts.register_forward_pre_hook(route))
    for path in paths:

        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor, path: str = path) -> None:
            output.retain_grad()
            inputs[path], outputs[path] = args[0].detach().flatten(0, -2), output

        handles.append(model.get_submodule(path).register_forward_hook(keep))
    try:
        with torch.enable_grad():
            log_probs = model(input_ids=window[None], use_cache=False).logits[0].float().log_softmax(-1)
            drawn = torch.multinomial(log_probs.detach().exp(), 1, generator=draw)
            (-log_probs.gather(1, drawn).sum()).backward()
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: Seen(inputs[path], grad.flatten(0, -2), tokens.get(path.rpartition(".")[0]))
        for path in outputs
        if (grad := outputs[path].grad) is not None
    }
