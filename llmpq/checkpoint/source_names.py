"""Source names: what the tensors of a checkpoint are called in the model that transformers builds from it."""

import re
from collections.abc import Iterable, Mapping

from llmpq.graph import LayerGraph

# One expert's matrix, as Mixtral (w1, w3, w2) and Qwen, DeepSeek and others name it.
EXPERT = re.compile(r"^(.+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(w1|w3|w2|gate_proj|up_proj|down_proj)\.weight$")
FUSED = {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
FUSED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
HALF = {"w3": 1, "up_proj": 1}  # up is stored below gate


def module_sources(names: Iterable[str], graph: LayerGraph) -> dict[str, tuple[str, ...]]:
    """Name in the model -> names in the checkpoint, in natural order of the former.

    One name each, but for experts that the graph knows as one 3-D parameter: gate and up of expert 0, of expert 1, ...
    Base-model checkpoints that lack the leading "transformer." or "model." get it.
    """
    names = tuple(names)
    base = base_prefix(graph)
    if any(name.startswith(base) for name in names):
        mapped = {name: name for name in names}
    else:
        mapped = {name if name.startswith(f"{graph.head}.") else base + name: name for name in names}
    found = _fuse_experts(mapped, frozenset(fused_parameters(graph)))
    return {name: found[name] for name in sorted(found)}


def fused_parameters(graph: LayerGraph) -> dict[str, int]:
    """Full name of every 3-D parameter -> its experts."""
    return {
        f"{name}.{linear.name}": linear.experts
        for layer, name in enumerate(graph.layer_names)
        for linear in graph.kind_of(layer).linears
        if linear.experts > 1
    }


def base_prefix(graph: LayerGraph) -> str:
    """What stands before the first dot of every name below the base model, the dot included."""
    return graph.layer_names[0].split(".")[0] + "."


def _fuse_experts(mapped: Mapping[str, str], fused: frozenset[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for name, source in mapped.items():
        match = EXPERT.match(name)
        parameter = f"{match[1]}.mlp.experts.{FUSED[match[3]]}" if match else ""
        if match and parameter in fused:
            parts.setdefault(parameter, []).append((int(match[2]), HALF.get(match[3], 0), source))
        else:
            found[name.replace(".block_sparse_moe.", ".mlp.") if fused else name] = (source,)
    return found | {name: tuple(source for *_, source in sorted(pieces)) for name, pieces in parts.items()}
