"""Smoothing: scales moved from the inputs of w8a8 linears into their weights, by way of the norm before them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from llmpq.precision import Precision
from llmpq.quantization.fake_quantization import weight_of
from llmpq.quantization.norm_edges import norm_edges
from llmpq.quantization.rounding import quantize, round_inputs

STRENGTHS = (0.25, 0.5, 0.75)  # the share of the spread between columns that the weights take over; SmoothQuant's alpha
WORTH = 0.99  # of the layer's error without: what must be undercut, so that noise decides nothing
WINDOWS = 4  # of the calibration text, to choose by
LARGEST_POWER = 8  # of two, either way

Call = Callable[[nn.Module, int], Any]  # what a layer makes of a window


def smooth(layer: nn.Module, linears: Mapping[str, Precision], call: Call, windows: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Changes norms and the linears behind them in place; returns the parameters of the norms, by name, in `dtype`.

    For a norm whose output x only linears W read, x / s and W s (s per column) multiply to the same, and x / s rounds better per
    token when its columns are alike (Xiao et al. 2022, arXiv 2211.10438). s are powers of two, which leave a norm's weight exact
    in any type. Kept is what lowers the error of the layer's output with weights and inputs rounded. linears: path ->
    precision, of one layer.
    """
    rounded = {path: precision for path, precision in linears.items() if precision.name == "w8a8"}
    if not rounded:
        return {}
    seen = range(min(windows, WINDOWS))
    wanted = [_output(call(layer, window)) for window in seen]
    edges = norm_edges(layer, rounded, lambda: call(layer, 0))
    largest = _largest_inputs(layer, edges, call, seen)
    least = _error(layer, rounded, call, wanted)
    changed: dict[str, Tensor] = {}
    for norm, readers in edges.items():
        candidates = [_powers(layer, readers, largest[norm], strength) for strength in STRENGTHS]
        for powers in candidates:
            kept = _parameters(layer, norm, readers)
            error = _error(layer, rounded, call, wanted) if _fold(layer, norm, readers, powers, dtype) else float("inf")
            if error < WORTH * least:
                least = error
                changed |= {f"{norm}.{name}": value.to(dtype) for name, value in _norm(layer, norm).items()}
                break
            _restore(kept)
    return changed


def _output(value: Any) -> Tensor:
    """The hidden state: the first tensor that a layer returns."""
    return next(leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _norm(layer: nn.Module, path: str) -> dict[str, nn.Parameter]:
    return dict(layer.get_submodule(path).named_parameters())


def _largest_inputs(layer: nn.Module, edges: Mapping[str, Sequence[str]], call: Call, windows: range) -> dict[str, Tensor]:
    """Norm -> [features], the largest magnitude of each column of what it writes."""
    largest: dict[str, Tensor] = {}
    handles = []
    for norm in edges:

        def record(module: nn.Module, inputs: Any, output: Tensor, norm: str = norm) -> None:
            now = output.abs().flatten(0, -2).amax(0)
            largest[norm] = torch.maximum(largest[norm], now) if norm in largest else now

        handles.append(layer.get_submodule(norm).register_forward_hook(record))
    for window in windows:
        call(layer, window)
    for handle in handles:
        handle.remove()
    return largest


def _powers(layer: nn.Module, readers: Sequence[str], largest: Tensor, strength: float) -> Tensor:
    """[features]: powers of two near inputs^strength / weights^(1 - strength), around one; one for columns that are zero."""
    weights = torch.stack([weight_of(layer, path).abs().amax(0) for path in readers]).amax(0)
    alive = (largest > 0) & (weights > 0)
    logarithm = torch.where(alive, strength * largest.log2() - (1 - strength) * weights.log2(), 0.0)
    centred = torch.where(alive, logarithm - logarithm[alive].mean(), 0.0)
    return torch.exp2(centred.round().clamp(-LARGEST_POWER, LARGEST_POWER))


def _error(layer: nn.Module, linears: Mapping[str, Precision], call: Call, wanted: Sequence[Tensor]) -> float:
    """Sum of squares of what rounding weights and inputs of the linears changes in the layer's output."""
    kept = {path: weight_of(layer, path).clone() for path in linears}
    handles = [
        layer.get_submodule(path).register_forward_pre_hook(round_inputs(precision)) for path, precision in linears.items()
    ]
    for path, precision in linears.items():
        weight_of(layer, path).copy_(quantize(weight_of(layer, path), precision).dequantize())
    found = sum(float((_output(call(layer, window)) - right).square().sum()) for window, right in enumerate(wanted))
    for path, weight in kept.items():
        weight_of(layer, path).copy_(weight)
    for handle in handles:
        handle.remove()
    return found


def _parameters(layer: nn.Module, norm: str, readers: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """(parameter, its value now) of a norm and of the linears that read it."""
    return [(tensor, tensor.clone()) for tensor in (*_norm(layer, norm).values(), *(weight_of(layer, path) for path in readers))]


def _restore(kept: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in kept:
        tensor.copy_(value)


def _fold(layer: nn.Module, norm: str, readers: Sequence[str], powers: Tensor, dtype: torch.dtype) -> bool:
    """Whether the norm now writes x / powers, and the readers multiply by as much; the parameters as they would be stored.

    A norm multiplies by its weight or by one more than it; which of the two, its output tells.
    """
    module = layer.get_submodule(norm)
    probe = torch.randn(4, len(powers), generator=torch.Generator().manual_seed(0)).to(powers.device)
    wanted = module(probe) / powers
    for path in readers:
        weight_of(layer, path).mul_(powers)
    originals = {name: value.clone() for name, value in _norm(layer, norm).items()}
    for offset in (0.0, 1.0):
        for name, value in _norm(layer, norm).items():
            shift = offset if name == "weight" else 0.0
            value.copy_((((originals[name] + shift) / powers) - shift).to(dtype))
        if torch.allclose(module(probe), wanted, rtol=2**-7, atol=float(wanted.abs().mean()) * 2**-7):
            return True
    return False
