"""What vLLM made of the linears of a model's layers."""

from typing import Any


def linears(model: Any) -> dict[str, tuple[str, str]]:
    """Fused linear -> (its quantization scheme, its kernel, with the instruction set where vLLM chooses one)."""
    modules = ((name, module) for name, module in model.named_modules() if ".layers." in name)
    return {name: _linear(module) for name, module in modules if hasattr(module, "output_size")}


def _linear(module: Any) -> tuple[str, str]:
    scheme = getattr(module, "scheme", module.quant_method)
    kernel = type(getattr(scheme, "kernel", scheme)).__name__
    if getattr(module, "use_w4a8", False):
        return type(scheme).__name__, f"{kernel} with 8-bit activations"
    hint = getattr(module, "isa_hint", None)
    return type(scheme).__name__, kernel if hint is None else f"{kernel} ({hint})"
