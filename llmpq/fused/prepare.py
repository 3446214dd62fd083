"""Preparation of a stage whose weights are loaded: every part of it gets the kernels of its device."""

from torch import nn

from llmpq.fused.attention import use_attention_kernel
from llmpq.quantization.quantized_linear import prepare_linears


def prepare_stage(module: nn.Module) -> None:
    """For a stage, or a module of one, that computes in 16 bits; afterwards it takes no other type."""
    prepare_linears(module)
    use_attention_kernel(module)
