"""Source names: what the tensors of a checkpoint are called in the model that transformers builds from it."""

import re
from collections.abc import Iterable, Mapping

from llmpq.checkpoint.load_renamings import LoadRenamings, load_renamings, tied_source
from llmpq.graph import LayerGraph

MULTIMODAL = re.compile(r"^(?:model\.language_model|language_model\.model|language_model)\.")
NUMBER = re.compile(r"\.experts\.(\d+)\.")
# One expert's matrix, as Mixtral (w1, w3, w2) and Qwen, DeepSeek and others name it.
EXPERT = re.compile(r"^(.+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(w1|w3|w2|gate_proj|up_proj|down_proj)\.weight$")
FUSED = {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
FUSED |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
HALF = {"w3": 1, "up_proj": 1}  # up is stored below gate


def module_sources(names: Iterable[str], graph: LayerGraph) -> dict[str, tuple[str, ...]]:
    """Name in the model -> names in the checkpoint, in natural order of the former.

    One name each, but for experts that the graph knows as one 3-D parameter: gate and up of expert 0, of expert 1, ...
    Base-model checkpoints that lack the leading "transformer." or "model." get it, text models of multimodal checkpoints lose
    what stands before it. Where transformers renames tensors of an architecture as it loads them, its renamings hold.
    """
    sources = {_text_name(name, graph): name for name in names}
    base = base_prefix(graph)
    if not any(name.startswith(base) for name in sources):
        sources = {name if name.startswith(f"{graph.head}.") else base + name: source for name, source in sources.items()}
    found = _fuse_experts(sources, frozenset(fused_parameters(graph)), load_renamings(graph.architecture))
    _add_tied(found, graph)
    return {name: found[name] for name in sorted(found)}


def _text_name(name: str, graph: LayerGraph) -> str:
    """The name without the part that says which model of a multimodal one it belongs to."""
    if ".language_model." in graph.layer_names[0] or not (match := MULTIMODAL.match(name)):
        return name
    rest = name[match.end() :]
    return rest if rest.startswith(f"{graph.head}.") else base_prefix(graph) + rest


def _add_tied(found: dict[str, tuple[str, ...]], graph: LayerGraph) -> None:
    """Give parameters that the model ties, other than its head, the tensor of the one they are tied to."""
    for parameter in graph.last:
        source = tied_source(graph.architecture, parameter.name)
        if parameter.name not in found and source in found:
            found[parameter.name] = found.pop(source)


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


def _fuse_experts(sources: Mapping[str, str], fused: frozenset[str], renamings: LoadRenamings) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for name, source in sources.items():
        target, half = renamings.rename(name)
        match = EXPERT.match(name)
        if target not in fused and match and f"{match[1]}.mlp.experts.{FUSED[match[3]]}" in fused:
            target, half = f"{match[1]}.mlp.experts.{FUSED[match[3]]}", HALF.get(match[3], 0)
        number = NUMBER.search(name)
        if half is not None and target in fused and number:
            parts.setdefault(target, []).append((int(number[1]), half, source))
        else:
            found[target if half is None else name] = (source,)
    return found | {name: tuple(source for *_, source in sorted(pieces)) for name, pieces in parts.items()}
