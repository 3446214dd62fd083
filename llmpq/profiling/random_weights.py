"""Random weights: tensors of a lowered stage, with values in the range of real ones, for measuring alone."""

import torch
from torch import Tensor, nn

from llmpq.quantization.quantized_linear import QuantizedLinear

SEED = 0
SPREAD = 0.02  # standard deviation of 16-bit weights, that of most models' initialization
STEP = SPREAD / 4  # scale of quantized ones


def fill(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Give every tensor of the state dict values, in place; tied parameters stay tied.

    Floats become normal numbers in `dtype`, norms' weights 1, codes uniform integers, scales one step.
    """
    generator = torch.Generator().manual_seed(SEED)
    made: dict[int, Tensor] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if id(tensor) not in made:
            made[id(tensor)] = _values(name, tensor, dtype, generator).to(device)
    filled = {name: made[id(tensor)] for name, tensor in state.items()}
    for path, linear in module.named_modules():
        if isinstance(linear, QuantizedLinear) and f"{path}.weight_shape" in filled:
            filled[f"{path}.weight_shape"] = torch.tensor([linear.out_features, linear.in_features])
    module.load_state_dict(filled, assign=True)
    module.to(device)


def _values(name: str, tensor: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if not tensor.dtype.is_floating_point:
        info = torch.iinfo(tensor.dtype)
        return torch.randint(info.min, info.max, tensor.shape, dtype=tensor.dtype, generator=generator)
    if tensor.dtype == torch.float8_e4m3fn:
        return torch.empty(tensor.shape).normal_(0.0, 1.0, generator=generator).to(tensor.dtype)
    if name.endswith("weight_scale"):
        return torch.full(tensor.shape, STEP, dtype=dtype)
    if tensor.dim() < 2:
        return torch.ones(tensor.shape, dtype=dtype) if name.endswith("weight") else torch.zeros(tensor.shape, dtype=dtype)
    return torch.empty(tensor.shape, dtype=dtype).normal_(0.0, SPREAD, generator=generator)
