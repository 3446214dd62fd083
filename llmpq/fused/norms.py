"""Norms of layers as one operation, recognised by what they compute."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmpq.fused.operators import NORM_FORMS, NormForm, Operators, operators
from llmpq.fused.probing import FAILURES, agree, draw, probing, takes_one_tensor, use_instead

SIZES = (1.0, 30.0, 1e-2, 1e-3)  # of the probe's rows: in the smallest the epsilon shows


@dataclass(frozen=True, slots=True)
class FusedNorm:
    """What a norm computes, for bfloat16; other types go to the module's own code."""

    operators: Operators
    own: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None
    epsilon: float
    form: NormForm

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            return self.own(x)
        return self.operators.norm(x, self.weight, self.bias, self.epsilon, self.form)


def fuse_norm(module: nn.Module) -> bool:
    """Whether the module, loaded, is a norm over its last dimension that has a fused form, which it then uses."""
    kernel, parameters = operators(), dict(module.named_parameters(recurse=False))
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if kernel is None or weight is None or not _may_be_norm(module, parameters):
        return False
    epsilons = [value for value in vars(module).values() if isinstance(value, float)]
    with probing() as generator:
        x = torch.cat([size * draw(generator, 3, len(weight)) for size in SIZES])
        try:
            wanted = module(x)
        except FAILURES:
            return False
        for form in NORM_FORMS:
            for epsilon in epsilons:
                shift = None if bias is None else bias.detach()
                found = FusedNorm(kernel, module.forward, weight.detach(), shift, epsilon, form)
                if all(agree(row, of) for row, of in zip(found(x).chunk(len(SIZES)), wanted.chunk(len(SIZES)))):
                    use_instead(module, found)
                    return True
    return False


def _may_be_norm(module: nn.Module, parameters: dict[str, nn.Parameter]) -> bool:
    on_cpu = all(found.dtype == torch.bfloat16 and found.device.type == "cpu" for found in parameters.values())
    shapes = {tuple(found.shape) for found in parameters.values()}
    plain = set(parameters) <= {"weight", "bias"} and len(shapes) == 1 and len(next(iter(shapes))) == 1
    return on_cpu and plain and next(module.children(), None) is None and takes_one_tensor(module)
