"""Which engines load a compiled checkpoint as it is, and why the others do not."""

from collections.abc import Iterator

from llmpq.checkpoint.load_renamings import load_renamings
from llmpq.graph import LayerGraph, LayerKind, Linear
from llmpq.hardware.devices import DeviceKind
from llmpq.hardware.kernel_shapes import shape_problems
from llmpq.layer_option import LayerOption, parse_option
from llmpq.plan import Plan
from llmpq.precision import Precision

Quantized = tuple[str, Linear, Precision]


def loadable_engines(graph: LayerGraph, plan: Plan, own_passes: tuple[str, ...] = ()) -> dict[str, bool | str]:
    """Engine -> True, or the reason why it does not load the checkpoint of this plan.

    own_passes: lowering passes of the user's, which change what runs; only llmpq runs them.
    `vllm` is vLLM on CUDA. vLLM's limits were measured on CPU and read from its source for CUDA.
    """
    quantized = tuple(quantized_linears(graph, plan))
    common = _vllm_reason(graph, quantized)
    reasons: dict[str, str | None] = {
        "llmpq": None,
        "transformers": None if _is_merged(graph, plan) else _shape_reason(graph, plan, "transformers", "cpu"),
        "vllm": common or _shape_reason(graph, plan, "vllm", "cuda"),
        "vllm-cpu": common or _plugin_reason(quantized) or _shape_reason(graph, plan, "vllm", "cpu"),
        "llama.cpp": "reads GGUF, not safetensors",
    }
    if own_passes:
        unlike = f"would run without {', '.join(own_passes)}, which the model was compiled with"
        reasons |= {engine: unlike for engine in reasons if engine != "llmpq"}
    return {engine: True if reason is None else reason for engine, reason in reasons.items()}


def quantized_linears(graph: LayerGraph, plan: Plan) -> Iterator[Quantized]:
    """(full module name, linear, precision) of every linear that the plan quantizes, in layer order; of experts each."""
    for layer, option in enumerate(plan.options):
        for linear in quantized_of(graph.kind_of(layer), parse_option(option)):
            for stored in linear.stored:
                yield f"{graph.layer_names[layer]}.{stored.name}", stored, parse_option(option).of(linear.part)


def quantized_of(kind: LayerKind, option: LayerOption) -> tuple[Linear, ...]:
    """The linears of a layer that an option quantizes, experts in one parameter as one."""
    return tuple(linear for linear in kind.linears if option.of(linear.part).is_quantized and linear.is_quantizable)


def _vllm_reason(graph: LayerGraph, quantized: tuple[Quantized, ...]) -> str | None:
    if any(linear.experts > 1 for kind in graph.kinds for linear in kind.linears):
        return "the experts of a layer are stored as one tensor, which vLLM was not seen to load"
    three = next((name for name, _, precision in quantized if precision.num_bits == 3), None)
    return None if three is None else f"{three} has 3 bits; vLLM's own kernels know 4 and 8"


def _is_merged(graph: LayerGraph, plan: Plan) -> bool:
    """Whether the quantized experts are such as transformers merges while it decompresses them: under names that the mapping of
    the architecture knows, all weight-only at one number of bits, that of the first group of the configuration."""
    quantized = tuple(quantized_linears(graph, plan))
    single = {
        f"{graph.layer_names[layer]}.{linear.name}"
        for layer in range(graph.num_layers)
        for linear in graph.kind_of(layer).linears
        if linear.experts == 1
    }
    experts = [(name, precision) for name, _, precision in quantized if name not in single]
    found = {precision for _, precision in experts}
    if len(found) != 1 or any(precision.activation_bits < 16 for precision in found):
        return False
    renamings = load_renamings(graph.architecture)
    is_first = min(precision.name for _, _, precision in quantized) == experts[0][1].name
    return is_first and all(renamings.rename(f"{name}.weight")[1] is not None for name, _ in experts)


def _shape_reason(graph: LayerGraph, plan: Plan, engine: str, device_kind: DeviceKind) -> str | None:
    """The first linear that the engine's kernels on that kind of device do not take, and why."""
    for layer, option in enumerate(plan.options):
        for refused in shape_problems(engine, device_kind, parse_option(option), graph.kind_of(layer)):
            return f"{graph.layer_names[layer]}.{refused.reason}"
    return None


def _plugin_reason(quantized: tuple[Quantized, ...]) -> str | None:
    name = next((name for name, _, precision in quantized if precision.name == "w8a16"), None)
    return None if name is None else f"{name} is w8a16, for which vLLM on CPU has no kernel without llmpq's plugin"
