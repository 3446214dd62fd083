"""Stage layout: which tensor of the source checkpoint goes to which stage's file, under which name and precision."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llmpq.checkpoint.cut import Cut, cuts_of
from llmpq.checkpoint.loadable_engines import quantized_linears, quantized_of
from llmpq.checkpoint.source_names import base_prefix, fused_parameters, module_sources
from llmpq.errors import CheckpointError, LlmpqWarning
from llmpq.graph import LayerGraph
from llmpq.layer_option import parse_option
from llmpq.plan import Plan
from llmpq.precision import Precision

# Masks and rotary frequencies that old checkpoints hold and no model loads any more.
LEGACY_BUFFER = re.compile(r"(\.attn\.(masked_)?bias|\.attn\.attention\.(masked_)?bias|\.rotary_emb\.inv_freq)$")


@dataclass(frozen=True, slots=True)
class Placement:
    """Tensors `sources` of the checkpoint, stored as `name`; `precision` None: cast to the compute dtype.

    `experts` > 1: the sources, one after the other, are the rows of [experts, rows, columns]. `layer`: whose it is, None for what
    stands before and behind the layers. `cut`: what of the one source is stored, where that is not all of it as it is.
    """

    name: str
    sources: tuple[str, ...]
    precision: Precision | None = None
    experts: int = 1
    layer: int | None = None
    cut: Cut | None = None

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")


def stage_file(index: int, count: int) -> str:
    """The file of stage `index` of `count`."""
    return f"model-stage-{index:05d}-of-{count:05d}.safetensors"


def place_tensors(names: Iterable[str], graph: LayerGraph, plan: Plan) -> tuple[tuple[Placement, ...], ...]:
    """One tuple per stage: the first stage's own tensors, the layers in order, the last stage's own tensors.

    names: the checkpoint's.
    Raises CheckpointError for a tensor that the graph needs and the checkpoint lacks; warns about those it does not know.
    """
    sources = module_sources(names, graph)
    precisions = {f"{name}.weight": precision for name, _, precision in quantized_linears(graph, plan)}
    experts = {name: count for name, count in fused_parameters(graph).items() if len(sources.get(name, ())) > 1}
    by_layer = _by_layer(sources, graph)
    split = _split_tensors(sources, graph, plan)
    first = [_own(sources, parameter.name, graph) for parameter in graph.first]
    last = [_own(sources, parameter.name, graph) for parameter in graph.last]
    if graph.tied_head is not None and len(plan.stages) > 1:
        last.append(Placement(f"{graph.head}.weight", _own(sources, graph.tied_head, graph).sources))
    placed = []
    for stage in plan.stages:
        own = [
            placement
            for layer in stage.layers
            for name in by_layer[layer]
            for placement in split.get(name)
            or [Placement(name, sources[name], precisions.get(name), experts.get(name, 1), layer)]
        ]
        begins = first if stage is plan.stages[0] else [_own(sources, name, graph) for name in graph.everywhere]
        placed.append([*begins, *own, *(last if stage is plan.stages[-1] else ())])
    _require_all(precisions, placed, graph)
    _warn_of_others(sources, placed, graph)
    return tuple(tuple(stage) for stage in placed)


def _split_tensors(sources: Mapping[str, tuple[str, ...]], graph: LayerGraph, plan: Plan) -> dict[str, list[Placement]]:
    """Name in the model -> what is stored of it, of quantized weights (and biases) that are not stored as the model has them."""
    split: dict[str, list[Placement]] = {}
    for layer, option in enumerate(map(parse_option, plan.options)):
        for linear in quantized_of(graph.kind_of(layer), option):
            if linear.experts == 1 and not linear.transposed:
                continue
            parameter = f"{graph.layer_names[layer]}.{linear.name}"
            names = {"weight": f"{parameter}.weight" if linear.experts == 1 else parameter}
            if linear.bias and linear.experts > 1:
                names["bias"] = f"{parameter}_bias"
            for suffix, name in names.items():
                found = sources.get(name, ())
                precision = option.of(linear.part) if suffix == "weight" else None
                split[name] = [
                    Placement(f"{graph.layer_names[layer]}.{stored.name}.{suffix}", (found[at],), precision, 1, layer, cut)
                    for stored, (at, cut) in zip(linear.stored, cuts_of(linear, len(found), suffix == "bias") if found else ())
                ]
    return split


def _by_layer(sources: Mapping[str, tuple[str, ...]], graph: LayerGraph) -> list[list[str]]:
    """Names of the tensors of every layer, buffers that no model loads left out."""
    index = {name: layer for layer, name in enumerate(graph.layer_names)}
    by_layer: list[list[str]] = [[] for _ in graph.layer_names]
    for name in sources:
        layer = next((index[head] for head in _heads(name) if head in index), None)
        if layer is not None and not LEGACY_BUFFER.search(name):
            by_layer[layer].append(name)
    return by_layer


def _heads(name: str) -> Iterable[str]:
    """a, a.b, a.b.c for a.b.c.weight."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _own(sources: Mapping[str, tuple[str, ...]], name: str, graph: LayerGraph) -> Placement:
    """The tensor `name` of first or last, which may be written with or without the base model's prefix."""
    for candidate in (name, base_prefix(graph) + name):
        if candidate in sources:
            return Placement(candidate, sources[candidate])
    raise CheckpointError(f"model {graph.model}: no tensor {name} among {len(sources)}; is config.json of another model?")


def _require_all(precisions: Mapping[str, Precision], placed: list[list[Placement]], graph: LayerGraph) -> None:
    missing = sorted(set(precisions) - {placement.name for stage in placed for placement in stage})
    if missing:
        some = f"{missing[0]} ({len(missing)} missing)"
        raise CheckpointError(f"model {graph.model}: no tensor {some}; is config.json of another model?")


def _warn_of_others(sources: Mapping[str, tuple[str, ...]], placed: list[list[Placement]], graph: LayerGraph) -> None:
    known = {source for stage in placed for placement in stage for source in placement.sources}
    known |= set(sources.get(f"{graph.head}.weight", ())) if graph.tied_head else set()
    others = [name for name, found in sources.items() if known.isdisjoint(found) and not LEGACY_BUFFER.search(name)]
    if others:
        text = f"model {graph.model}: {len(others)} tensors belong to no layer and are left out: {', '.join(others[:3])}"
        warnings.warn(text, LlmpqWarning, stacklevel=3)
