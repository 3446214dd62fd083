"""The variance indicator: how far rounding noise reaches, calibrated to nats per token by one joint measurement per option."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llmpq.graph import LayerGraph, Linear
from llmpq.precision import Precision
from llmpq.program import Calibration
from llmpq.quantization.original import load_original
from llmpq.quantization.rounding import quantize, quantize_activation_per_token
from llmpq.sensitivity import SensitivityTable

WINDOW = 512
WINDOWS = 8
KEPT_BYTES = 1 << 28  # of log-probabilities of the original model: every position of 4096 tokens up to a vocabulary of 16384


def variance(graph: LayerGraph, precisions: tuple[Precision, ...], calibration: Calibration) -> SensitivityTable:
    """Sensitivity of every layer at every precision, nats per token.

    For a linear y = W x the rounding of W adds noise of energy sum_oi e_oi^2 E[x_i^2], e the rounding error of each
    weight; divided by E|y|^2 and summed over a layer's linears this orders layers within one option (LLM-PQ, section 4.2,
    uses the bound scale^2 Var[x] of the same quantity). Rounded activations add scale^2 / 12 |W|^2. The sum over layers
    is then scaled to the divergence of the next-token distributions measured with every layer at that option: what the
    cross entropy rises by on text that is distributed as the original model says. On a few thousand tokens the rise itself
    is mostly noise, and may be negative.
    """
    model = load_original(calibration.checkpoint)
    windows = _windows(calibration.token_ids, min(WINDOW, graph.max_positions))
    with torch.inference_mode():
        moments = _second_moments(model, graph, windows)
        base = _log_probs(model, windows)
        noises = [_noise(model, graph, precision, moments) for precision in precisions]
        divergences = [_joint_divergence(model, graph, precision, windows, base) for precision in precisions]
    columns = [_scaled(noise, divergence) for noise, divergence in zip(noises, divergences)]
    rows = tuple(tuple(column[i] for column in columns) for i in range(graph.num_layers))
    tokens = windows.numel()
    provenance = f"variance indicator, scaled to each precision's joint divergence on {tokens} tokens of {calibration.text_name}"
    return SensitivityTable(tuple(p.name for p in precisions), rows, "variance", provenance)


def _windows(token_ids: tuple[int, ...], length: int) -> Tensor:
    """[windows, length] token ids, spread over the text; one shorter window when the text is shorter."""
    tokens = torch.tensor(token_ids)
    count = len(tokens) // length
    if count == 0:
        return tokens[None]
    chosen = torch.linspace(0, count - 1, min(WINDOWS, count)).round().long()
    return tokens[: count * length].view(count, length)[chosen]


def _log_probs(model: nn.Module, windows: Tensor) -> Tensor:
    """[positions, vocabulary] fp32 of next tokens, spread evenly over all windows and no more than KEPT_BYTES."""
    kept: list[Tensor] = []
    for window in windows:
        logits: Tensor = model(input_ids=window[None]).logits[0]
        wanted = max(1, KEPT_BYTES // (4 * logits.shape[-1] * len(windows)))
        kept.append(logits[:: -(-len(logits) // wanted)].float().log_softmax(-1))
    return torch.cat(kept)


def _linears(graph: LayerGraph) -> Iterator[tuple[int, str, Linear]]:
    for i, name in enumerate(graph.layer_names):
        for linear in graph.kind_of(i).linears:
            if linear.is_quantizable:
                yield i, f"{name}.{linear.name}", linear


def _second_moments(model: nn.Module, graph: LayerGraph, windows: Tensor) -> dict[str, Tensor]:
    """E[x_i^2] of each quantizable linear's input, [in_features]."""
    sums: dict[str, Tensor] = {}
    handles = []
    for _, path, _ in _linears(graph):

        def record(module: nn.Module, inputs: tuple[Any, ...], path: str = path) -> None:
            x = inputs[0].detach().float().flatten(0, -2)
            sums[path] = sums.get(path, torch.zeros(x.shape[-1])) + x.square().mean(0)

        handles.append(model.get_submodule(path).register_forward_pre_hook(record))
    for window in windows:
        model(input_ids=window[None])
    for handle in handles:
        handle.remove()
    return {path: total / len(windows) for path, total in sums.items()}


def _noise(model: nn.Module, graph: LayerGraph, precision: Precision, moments: dict[str, Tensor]) -> list[float]:
    """Noise-to-signal ratio of every layer at one precision, summed over its linears."""
    noise = [0.0] * graph.num_layers
    if precision.is_quantized:
        for i, path, _ in _linears(graph):
            noise[i] += _noise_to_signal(_weight(model, path), moments[path], precision)
    return noise


def _joint_divergence(model: nn.Module, graph: LayerGraph, precision: Precision, windows: Tensor, base: Tensor) -> float:
    """Nats per token from the original model to the one with every layer at `precision`."""
    if not precision.is_quantized:
        return 0.0
    with fake_quantized(model, graph, precision):
        rounded = _log_probs(model, windows)
    divergence = (base.exp() * (base - rounded)).sum(-1, dtype=torch.float64).mean()
    return max(0.0, float(divergence))


def _scaled(noise: list[float], total: float) -> list[float]:
    """Nats per token of each layer: shares of `total` in proportion to the noise."""
    whole = sum(noise)
    return [value * total / whole if whole else 0.0 for value in noise]


def _weight(model: nn.Module, path: str) -> Tensor:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight


def _noise_to_signal(weight: Tensor, moment: Tensor, precision: Precision) -> float:
    error = weight - quantize(weight, precision).dequantize()
    signal = float((weight.square() @ moment).sum())
    noise = float((error.square() @ moment).sum())
    if precision.activation_bits < 16:
        # a token's scale is its largest magnitude over 127; 9 sigma^2 stands for the square of the largest
        noise += float(weight.square().sum() * 9 * moment.mean() / 127**2 / 12)
    return noise / max(signal, 1e-30)


@contextmanager
def fake_quantized(model: nn.Module, graph: LayerGraph, precision: Precision) -> Iterator[None]:
    """Every quantizable linear at `precision` inside the block: rounded weights, and rounded inputs for w8a8."""
    kept: list[tuple[Tensor, Tensor]] = []
    handles = []
    for _, path, _ in _linears(graph):
        weight = _weight(model, path)
        kept.append((weight, weight.clone()))
        weight.copy_(quantize(weight, precision).dequantize())
        if precision.activation_bits < 16:
            handles.append(model.get_submodule(path).register_forward_pre_hook(_round_inputs))
    try:
        yield
    finally:
        for weight, original in kept:
            weight.copy_(original)
        for handle in handles:
            handle.remove()


def _round_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (quantize_activation_per_token(inputs[0]), *inputs[1:])
