"""A pytest plugin: compressed-tensors packs and unpacks by llmpq's functions, so that its own tests try them."""

import sys

import compressed_tensors
import torch
from compressed_tensors.compressors.pack_quantized import helpers
from torch import Tensor

from llmpq.quantization.packing import pack_codes, unpack_codes


def pack_to_int32(value: Tensor, num_bits: int, packed_dim: int = 1) -> Tensor:
    """Ours takes matrices along rows: other shapes are cut into those, as compressed-tensors does."""
    if value.ndim > 2:
        return torch.stack([pack_to_int32(each, num_bits, packed_dim) for each in value])
    return pack_codes(value, num_bits) if packed_dim == 1 else pack_codes(value.t().contiguous(), num_bits).t()


def unpack_from_int32(value: Tensor, num_bits: int, shape: torch.Size, packed_dim: int = 1) -> Tensor:
    if value.ndim > 2:
        return torch.stack([unpack_from_int32(each, num_bits, shape[1:], packed_dim) for each in value])
    if packed_dim == 1:
        return unpack_codes(value, num_bits, shape[1])
    return unpack_codes(value.t().contiguous(), num_bits, shape[0]).t()


def pytest_configure() -> None:
    """Every module that has taken the functions over gets ours."""
    assert compressed_tensors is not None
    for function in (pack_to_int32, unpack_from_int32):
        theirs = getattr(helpers, function.__name__)
        for module in list(sys.modules.values()):
            if getattr(module, function.__name__, None) is theirs:
                setattr(module, function.__name__, function)
