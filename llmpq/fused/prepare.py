"""Preparation of a stage whose weights are loaded: every part of it gets the kernels of its device."""

from torch import nn

from llmpq.fused.attention import use_attention_kernel
from llmpq.fused.gated_mlps import fuse_gated_mlp
from llmpq.fused.norms import fuse_norm
from llmpq.fused.rotated_attention import fuse_attention
from llmpq.quantization.quantized_linear import prepare_linears


def prepare_stage(module: nn.Module) -> None:
    """For a stage, or a module of one, that computes in 16 bits; afterwards it takes no other type.

    Modules keep their places, names, parameters and buffers; what they compute differs by rounding alone.
    """
    prepare_linears(module)
    use_attention_kernel(module)
    modules = tuple(module.modules())
    for found in modules:
        fuse_norm(found)
    for found in modules:
        fuse_gated_mlp(found)
        fuse_attention(found)
