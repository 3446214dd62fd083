"""Gated MLPs as two products with one operation between them, recognised by what they compute."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import Tensor, nn

from llmpq.fused.operators import ACTIVATIONS, Activation, Operators, operators
from llmpq.fused.probing import FAILURES, agree, draw, probing, takes_one_tensor, use_instead
from llmpq.quantization.merged_linear import MergedLinear, merged_linear
from llmpq.quantization.quantized_linear import QuantizedLinear

BENT, POINTS = 3.0, 512  # standard deviation of the probe's gates, where activation functions are not straight; points of one
Linear = nn.Linear | QuantizedLinear


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """down(activation(gate(x)) * up(x)); where gate and up are merged, by one product."""

    operators: Operators
    own: Callable[[Tensor], Tensor]
    gate: Linear
    up: Linear
    down: Linear
    activation: Activation
    merged: MergedLinear | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            return self.own(x)
        y: Tensor = self.down(self._inner(x.reshape(-1, x.shape[-1])))
        return y.view(*x.shape[:-1], y.shape[-1])

    def _inner(self, x: Tensor) -> Tensor:
        if self.merged is None:
            return self.operators.gated(self.gate(x), self.up(x), self.activation)
        both, columns = self.merged.product(x), self.merged.sizes[0]
        return self.operators.gated(both[:, :columns], both[:, columns:], self.activation)


def fuse_gated_mlp(module: nn.Module) -> bool:
    """Whether the module, its linears prepared, is a gated MLP of a known activation, which is then computed so."""
    kernel, linears = operators(), [child for child in module.children() if isinstance(child, Linear)]
    others = [child for child in module.children() if not isinstance(child, Linear)]
    bare = len(others) == 1 and next(others[0].parameters(), None) is None
    if kernel is None or len(linears) != 3 or not bare or next(module.parameters(recurse=False), None) is not None:
        return False
    if not takes_one_tensor(module):
        return False
    activation = _activation(kernel, others[0])
    for gate, up, down in permutations(linears):
        if activation is not None and _fits(gate, up, down):
            found = GatedMlp(kernel, module.forward, gate, up, down, activation)
            if _is_it(module, found):
                use_instead(module, replace(found, merged=merged_linear((gate, up))))
                return True
    return False


def _fits(gate: Linear, up: Linear, down: Linear) -> bool:
    inner = (gate.in_features, gate.out_features)
    return inner == (up.in_features, up.out_features) and inner == (down.out_features, down.in_features)


def _activation(kernel: Operators, module: nn.Module) -> Activation | None:
    """Which of the known activation functions the module is."""
    with probing():
        x = torch.linspace(-BENT, BENT, POINTS).bfloat16()[None]
        try:
            wanted = module(x)
        except FAILURES:
            return None
        return next((name for name in ACTIVATIONS if agree(kernel.gated(x, torch.ones_like(x), name), wanted)), None)


def _is_it(module: nn.Module, found: GatedMlp) -> bool:
    """Whether the module computes the same, on gates for which it matters which of the linears they come from."""
    with probing() as generator:
        x = draw(generator, 4, found.gate.in_features)
        try:
            x = x * (BENT / found.gate(x).float().std().clamp(min=1e-6)).bfloat16()
            wanted = module(x)
        except FAILURES:
            return False
        return agree(found(x), wanted, equal=0.0)
