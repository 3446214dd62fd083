"""Checks of an output directory beyond its bytes: names, shapes and types against plan, config and model."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from llmpq.answers.plan_file import PLAN_FILE
from llmpq.checkpoint.loadable_engines import quantized_linears
from llmpq.checkpoint.quantization_config import module_precisions
from llmpq.checkpoint.reader import CONFIG_FILE, Checkpoint, read_json
from llmpq.checkpoint.stage_layout import stage_file
from llmpq.errors import CheckpointError
from llmpq.fx.split_linears import split_linears
from llmpq.graph import LayerGraph
from llmpq.layer_option import SEPARATOR
from llmpq.plan import Plan
from llmpq.precision import Precision
from llmpq.quantization.packing import is_packed, layout, suffixes
from llmpq.serialize import loads

REMEDY = "compile again or copy the file again"


def read_plan(out: Path) -> Plan:
    """The plan of an output directory; CheckpointError when it has none."""
    path = out / PLAN_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; is {out} the output of llmpq compile? {REMEDY}")
    return loads(Plan, path.read_text(encoding="utf-8"), PLAN_FILE)


def require_stored_as_planned(out: Path, graph: LayerGraph, plan: Plan) -> None:
    """Raises CheckpointError where config.json has a module at another precision than its plan, as today's llmpq reads it.

    So it is where a release did not quantize what this one does (experts in one parameter and Conv1D, at first); and where the
    plan is of another model.
    """
    placed = sum(len(stage.options) for stage in plan.stages)
    if placed != graph.num_layers:
        told = f"places {placed} layers of {plan.model}, the model beside it has {graph.num_layers}"
        raise CheckpointError(f"{out / PLAN_FILE}: {told}; {REMEDY}")
    planned = {name: precision.name for name, _, precision in quantized_linears(graph, plan)}
    stored = {name: precision.name for name, precision in module_precisions(read_json(out / CONFIG_FILE)).items()}
    unlike = [name for name in {**planned, **stored} if planned.get(name, "16") != stored.get(name, "16")]
    if unlike:
        first, more = unlike[0], f" ({len(unlike)} such modules)" if unlike[1:] else ""
        raise CheckpointError(
            f"{out}: {first} is stored at {stored.get(first, '16')}, expected {planned.get(first, '16')} by its plan{more}: "
            "another release of llmpq wrote it; compile the model again"
        )


def structural_problems(out: Path) -> Iterator[str]:
    """One line for each contradiction between files, plan.json, config.json and the model that transformers builds."""
    try:
        plan, checkpoint = read_plan(out), Checkpoint.open(out)
        precisions = module_precisions(checkpoint.config)
    except CheckpointError as error:
        yield str(error)
        return
    yield from _stage_problems(out, plan, checkpoint)
    for module, precision in precisions.items():
        yield from _module_problems(module, precision, checkpoint)
        yield from _plan_problems(module, precision, plan)
    yield from _model_problems(checkpoint, precisions)


def _stage_problems(out: Path, plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:
    """Every layer's tensors lie in the file of the stage that runs the layer, floats in the compute dtype."""
    stage_of = {layer: index for index, stage in enumerate(plan.stages) for layer in stage.layers}
    for name, file in checkpoint.files.items():
        layer = _layer_of(name)
        if layer is not None:
            expected = stage_file(stage_of[layer], len(plan.stages)) if layer in stage_of else "none: the plan has no such layer"
            if file.path.name != expected:
                yield f"{file.path}: holds {name}, expected in {expected}; {REMEDY}"
        dtype = checkpoint.dtype(name)
        if dtype.is_floating_point and dtype.itemsize > 1 and str(dtype) != f"torch.{plan.compute_dtype}":
            yield f"{out / file.path.name}: {name} is {dtype}, expected {plan.compute_dtype}; {REMEDY}"


def _layer_of(name: str) -> int | None:
    """The number in a tensor's name that counts layers: the first."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _module_problems(module: str, precision: Precision, checkpoint: Checkpoint) -> Iterator[str]:
    """The tensors of a quantized module are there, with the shapes of its precision, and its scales are usable."""
    missing = [suffix for suffix in suffixes(precision) if f"{module}.{suffix}" not in checkpoint.files]
    if missing:
        yield f"{module}: {missing[0]} is missing, expected with {precision.name}; {REMEDY}"
        return
    scale = checkpoint.tensor(f"{module}.weight_scale")
    rows, columns = _size(module, precision, checkpoint)
    for suffix, (dtype, shape) in layout(precision, rows, columns, scale.dtype).items():
        info = checkpoint.info(f"{module}.{suffix}")
        if (info.dtype, info.shape) != (dtype, shape):
            yield f"{info.name}: {info.dtype} {list(info.shape)}, expected {dtype} {list(shape)} with {precision.name}; {REMEDY}"
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        yield f"{module}.weight_scale: holds values that are not positive and finite; {REMEDY}"


def _size(module: str, precision: Precision, checkpoint: Checkpoint) -> tuple[int, int]:
    if not is_packed(precision):
        rows, columns = checkpoint.shape(f"{module}.weight")
        return rows, columns
    rows, columns = (int(size) for size in checkpoint.tensor(f"{module}.weight_shape"))
    return rows, columns


def _plan_problems(module: str, precision: Precision, plan: Plan) -> Iterator[str]:
    layer = _layer_of(module)
    option = plan.options[layer] if layer is not None and layer < len(plan.options) else "no such layer"
    if precision.name not in option.split(SEPARATOR):
        yield f"{CONFIG_FILE}: {module} is {precision.name}, {PLAN_FILE} says {option}; {REMEDY}"


def _model_problems(checkpoint: Checkpoint, precisions: Mapping[str, Precision]) -> Iterator[str]:
    """The tensors are those of the model that config.json describes."""
    needed, known = _model_shapes(checkpoint.config, precisions)
    found = {name: checkpoint.shape(name) for name in checkpoint.names if not _is_part(name, precisions)}
    found |= {f"{module}.weight": _size(module, precision, checkpoint) for module, precision in precisions.items()}
    for name in sorted(found.keys() & known.keys()):
        if found[name] != known[name]:
            yield f"{name}: {list(found[name])}, {CONFIG_FILE} says {list(known[name])}; {REMEDY}"
    yield from (f"{name}: missing, {CONFIG_FILE} expects it; {REMEDY}" for name in sorted(needed - found.keys()))
    yield from (f"{name}: {CONFIG_FILE} knows no such tensor; {REMEDY}" for name in sorted(found.keys() - known.keys()))


def _is_part(name: str, precisions: Mapping[str, Precision]) -> bool:
    return name.rpartition(".")[0] in precisions and not name.endswith(".bias")


def _model_shapes(config: Mapping[str, Any], quantized: Collection[str]) -> tuple[frozenset[str], dict[str, tuple[int, ...]]]:
    """Of the model of a config.json, its quantized modules linears of their own: parameters that it cannot do without, and the
    shapes of all, tied ones and buffers too."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    plain = AutoConfig.for_model(**{key: value for key, value in config.items() if key != "quantization_config"})
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(plain)]
    with torch.device("meta"):
        model = model_class(plain)
    split_linears(model, quantized)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
    shapes |= {name: tuple(tensor.shape) for name, tensor in model.named_buffers()}
    return frozenset(name for name, _ in model.named_parameters()), shapes
