"""One class of the coverage sweep: a tiny model of it is traced, cut, run, compiled and loaded, and what fails says why."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers
from coverage_models import VOCABULARY, tiny_config, tiny_model
from torch import Tensor, fx
from transformers import DynamicCache, PreTrainedModel

from llmpq.checkpoint.loadable_engines import loadable_engines
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.reference import reference_model
from llmpq.checkpoint.shards import write_shards
from llmpq.compiled import load
from llmpq.errors import LlmpqError
from llmpq.frontend.layer_graph import layer_graph
from llmpq.frontend.traceable import is_encoder, require_traceable
from llmpq.frontend.tracing import trace
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.plan import DeviceMemory, Optimality, Pipeline, Plan, Prediction, Quality, Stage
from llmpq.precision import parse_precisions
from llmpq.program import Program, Request
from llmpq.runtime.kv_cache import KvCache
from llmpq.workload import Batch

STATE_SPACE = "state-space"
ROUNDING = 1e-4  # fp32 logits of the same model, summed in another order
UNCUT = "one device only"
PROMPT, STEPS, ROWS = 9, 3, 3
"""Sequences longer than the windows and chunks of the tiny configurations."""


@dataclass
class Case:
    """What a class can do; a step that failed has its reason in `reasons`, one line each, and those behind it stay None."""

    name: str
    model_types: tuple[str, ...]
    traced: bool | None = None
    prefill: str | None = None
    decode: str | None = None
    left_padded: str | None = None
    two_stages: str | None = None
    quantizable: str | None = None
    compiled: str | None = None
    engines: dict[str, bool | str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        return not self.reasons

    @property
    def is_state_space(self) -> bool:
        return any(STATE_SPACE in reason for reason in self.reasons.values())


Call = tuple[Tensor, Tensor, Tensor]


def check(name: str, model_types: tuple[str, ...], compiles: bool = True) -> Case:
    """Every step of one class, in order; the first that fails ends it. `compiles`: the last step too."""
    case = Case(name, model_types)
    if getattr(transformers, name)._is_stateful:
        case.reasons["traced"] = f"unsupported: {STATE_SPACE} layers; they keep a state, not keys and values"
        return case
    with _failing(case, "built"):
        model = _model(name)
    if case.works:
        with _failing(case, "traced"):
            require_traceable(model)
            reference = _eager(model, calls(padded=False), DynamicCache(config=model.config))
            traced = trace(model)
            graph = layer_graph(model, traced, name)
            case.traced = True
    if case.works:
        case.quantizable = quantizable(graph)
        with _failing(case, "equal to eager"):
            ours = _run([traced], graph, calls(padded=False))
            case.prefill, case.decode = difference(ours[:1], reference[:1]), difference(ours[1:], reference[1:])
    if case.works:
        with _failing(case, "left padding"):
            eager = _eager(model, calls(padded=True), DynamicCache(config=model.config), with_positions=True)
            case.left_padded = difference(_run([traced], graph, calls(padded=True)), eager)
    if case.works:
        with _failing(case, "two stages"):
            stages = _lowered(model, traced, graph)
            whole = _run([traced], graph, calls(padded=True))
            equal = difference(_run(stages, graph, calls(padded=True)), whole)
            case.two_stages = equal if len(stages) > 1 else UNCUT
    if case.works and compiles:
        with _failing(case, "compiled"), tempfile.TemporaryDirectory() as folder:
            case.compiled, case.engines = _compile(model, graph, Path(folder))
    return case


@contextmanager
def _failing(case: Case, step: str) -> Iterator[None]:
    """The reason of whatever ends the step: a sweep goes on, so here anything that a model's code raises is caught."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        case.reasons[step] = reason if isinstance(error, LlmpqError | AssertionError) else f"{type(error).__name__}: {reason}"


def _model(name: str) -> PreTrainedModel:
    config = tiny_config(name)
    try:
        return tiny_model(name, config, "sdpa")
    except (ValueError, ImportError):
        return tiny_model(name, config, "eager")


def calls(padded: bool) -> list[Call]:
    """(input_ids, attention_mask, position_ids) of a prefill and the decode steps behind it; `padded`: on the left, unequally."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(ROWS, PROMPT, dtype=torch.long)
    if padded:
        mask[0, :3] = 0
        mask[2, :1] = 0
    made: list[Call] = []
    for tokens in (PROMPT, *([1] * STEPS)):
        ids = torch.randint(3, VOCABULARY, (ROWS, tokens), generator=generator)
        made.append((ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens:]))
        mask = torch.cat([mask, torch.ones(ROWS, 1, dtype=torch.long)], dim=1)
    return made


@torch.no_grad()
def _eager(model: PreTrainedModel, inputs: list[Call], cache: Any, with_positions: bool = False) -> list[Tensor]:
    """transformers' own logits; without positions it numbers the tokens itself, as its users have it."""
    from llmpq.frontend.traceable import parameters_of_forward
    from llmpq.frontend.tracing import first_position

    if is_encoder(model):  # keeps no cache: the whole sequence again at every step
        inputs, cache = whole(inputs), None
    takes = with_positions and "position_ids" in parameters_of_forward(model)
    shift = first_position(model)
    return [
        model(
            input_ids=ids,
            attention_mask=mask,
            **({} if cache is None else {"past_key_values": cache, "use_cache": True}),
            **({"position_ids": positions + shift} if takes else {}),
        ).logits
        for ids, mask, positions in inputs
    ]


@torch.no_grad()
def _run(modules: list[fx.GraphModule], graph: LayerGraph, inputs: list[Call]) -> list[Tensor]:
    layers = {layer: graph.kind_of(layer).attention for layer in range(graph.num_layers)}
    cache = KvCache(layers, ROWS, PROMPT + STEPS, torch.float32)
    logits = []
    if not graph.generates:
        inputs = whole(inputs)
    for x, mask, positions in inputs:
        tokens = x.shape[1]
        value = x
        for module in modules:
            value = module(value, mask, positions, cache)
        if graph.generates:
            cache.advance(tokens)
        logits.append(value)
    return logits


def whole(inputs: list[Call]) -> list[Call]:
    """The same steps with everything before them instead of a cache."""
    made: list[Call] = []
    for ids, mask, _ in inputs:
        before = made[-1][0] if made else ids[:, :0]
        made.append((torch.cat([before, ids], dim=1), mask, (mask.cumsum(-1) - 1).clamp(min=0)))
    return made


def difference(ours: list[Tensor], theirs: list[Tensor]) -> str:
    """ "exact", or the largest difference relative to the largest logit where it is rounding. AssertionError when it is more."""
    largest = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    if largest == 0:
        return "exact"
    relative = largest / max(float(b.abs().max()) for b in theirs)
    if not relative <= ROUNDING:
        raise AssertionError(f"logits differ by {relative:.2g} of the largest; expected at most {ROUNDING:g}")
    return f"{relative:.0e}"


def quantizable(graph: LayerGraph) -> str:
    """Matrices of all kinds of layers that can be kept at fewer bits, of all; and what the others are."""
    linears = [linear for kind in graph.kinds for linear in kind.linears]
    kept = "" if all(linear.is_quantizable for linear in linears) else " (other experts stay at 16 bits)"
    return f"{sum(linear.is_quantizable for linear in linears)} of {len(linears)}{kept}"


def _stages(graph: LayerGraph, options: tuple[str, ...]) -> tuple[Stage, ...]:
    """Two, cut as near to the middle as the graph can be; one where it cannot be cut."""
    cuts = set(range(1, graph.num_layers)).difference(graph.uncut)
    if not cuts:
        return (Stage("CPU:0", 0, options),)
    cut = min(cuts, key=lambda layer: (abs(layer - graph.num_layers // 2), layer))
    return Stage("CPU:0", 0, options[:cut]), Stage("CPU:1", cut, options[cut:])


def _plan(graph: LayerGraph) -> Plan:
    """Two stages, the layers in turn at 8 and 16 bits where their kind can be quantized."""
    turns = count()
    options = tuple(
        "w8a16" if graph.kind_of(layer).is_quantizable and next(turns) % 2 == 0 else "16" for layer in range(graph.num_layers)
    )
    cluster, stages = Cluster.load("2xCPU"), _stages(graph, options)
    return Plan(
        model=graph.model,
        compute_dtype="float32",
        workload=Batch(batch_size=ROWS, prompt_len=PROMPT, gen_len=STEPS + 1),
        cluster=cluster,
        pipelines=(Pipeline(stages, ROWS, ROWS),),
        prediction=Prediction(
            1.0, 1.0, tuple(DeviceMemory(d.name, 0, 0, 0, 0, 0, d.capacity_bytes) for d in cluster.devices[: len(stages)]), "none"
        ),
        quality=Quality(0.0, None, "none"),
        optimality=Optimality(2.0, None, False, "by hand"),
    )


def _lowered(model: PreTrainedModel, traced: fx.GraphModule, graph: LayerGraph) -> list[fx.GraphModule]:
    """The stages of a plan that quantizes nothing."""
    plan = _plan(graph)
    plain = tuple(replace(stage, options=("16",) * len(stage.options)) for stage in plan.stages)
    plan = replace(plan, pipelines=(replace(plan.pipeline, stages=plain),))
    request = Request(plan.cluster, plan.workload, parse_precisions("16"))
    program = Program(graph, request, compute_dtype="float32", plan=plan, graph_module=traced)
    lowering = parse_pipeline("annotate-graph,rematerialize,split-by-stage")
    return list(run_passes(program, lowering).require("stages"))


def _compile(model: PreTrainedModel, graph: LayerGraph, folder: Path) -> tuple[str, dict[str, bool | str]]:
    """The model saved, compiled to two files, loaded back, and its log-probabilities against the dequantized reference."""
    source, out = folder / "source", folder / "out"
    model.save_pretrained(source)
    plan = _plan(graph)
    write_shards(out, Checkpoint.open(source), graph, plan, assets=source, build={})
    compiled = load(out)
    ids = calls(padded=False)[0][0][:1]
    with torch.no_grad():
        expected = reference_model(out)(input_ids=ids).logits[0].log_softmax(-1)
    return difference([compiled.log_probs(ids[0].tolist())], [expected]), loadable_engines(graph, plan)
