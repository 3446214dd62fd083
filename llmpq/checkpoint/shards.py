"""Shards: a plan carried out on a checkpoint, one safetensors file per stage, in a directory that engines load."""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmpq.answers.plan_file import PLAN_FILE
from llmpq.checkpoint.journal import Journal
from llmpq.checkpoint.loadable_engines import loadable_engines, quantized_linears
from llmpq.checkpoint.lowering_file import LLMPQS_OWN, Lowering
from llmpq.checkpoint.manifest import Manifest, check_bytes
from llmpq.checkpoint.output_checks import read_plan
from llmpq.checkpoint.output_directory import is_output
from llmpq.checkpoint.peak_memory import PeakMeter
from llmpq.checkpoint.quantization_config import quantization_config
from llmpq.checkpoint.quantization_report import BUILD_FILE, SECTION, QuantizationReport
from llmpq.checkpoint.reader import CONFIG_FILE, INDEX_FILE, Checkpoint, read_json
from llmpq.checkpoint.replacing import resuming
from llmpq.checkpoint.stage_layout import Placement, place_tensors, stage_file
from llmpq.checkpoint.stage_writer import SourceTensors, source_bytes, source_shape, write_stage
from llmpq.checkpoint.tensor_file import TensorFile
from llmpq.checkpoint.work_key import work_key
from llmpq.errors import CheckpointError, InputError
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.quantization.layer_quantizer import LayerQuantizer, LayerReport, RoundedLayers
from llmpq.quantization.quantizers import Gptq, Quantizer, Rounding
from llmpq.serialize import dumps, from_json, to_json

ASSETS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
Progress = Callable[[str, int, int], None]
ROUNDING = Rounding()


def write_shards(
    out: Path,
    checkpoint: Checkpoint,
    graph: LayerGraph,
    plan: Plan,
    *,
    assets: Path,
    build: Mapping[str, Any],
    lowering: Lowering = LLMPQS_OWN,
    quantizer: Quantizer = ROUNDING,
    progress: Progress | None = None,
) -> None:
    """Quantize `checkpoint` as `plan` says and write the output directory `out`, all of it or nothing.

    One tensor of the source is in memory at a time (rounding), or one layer with its Hessians (GPTQ). The bytes of every file
    but build.json depend on checkpoint, graph, plan, quantizer and assets alone; a process that was killed is gone on with at
    the layer where it stopped. assets: directory of the tokenizer and generation files. build: for build.json, to which the
    quantizer's report is added. progress: (tensor, source bytes written, source bytes in all). Raises InputError when `out` is
    something else than an earlier output of llmpq, CheckpointError when the checkpoint does not fit the graph,
    QuantizationError for a weight that cannot be quantized.
    """
    require_original(checkpoint)
    stages = place_tensors(checkpoint.names, graph, plan)
    _require_shapes(checkpoint, graph, plan, stages)
    meter, started = PeakMeter(), time.perf_counter()
    with resuming(out, is_output, work_key(checkpoint, plan, quantizer)) as journal:
        directory = journal.directory
        source = SourceTensors(checkpoint, [placement for stage in stages for placement in stage], compute_dtype(plan))
        resumed = len(journal.finished)
        layers = layer_quantizer(quantizer, graph, plan, source, directory)
        _write_stages(journal, source, stages, layers, progress)
        reports = [from_json(LayerReport, report) for report in journal.finished.values() if report is not None]
        seconds = round(time.perf_counter() - started, 3)
        report = QuantizationReport(quantizer.describe(), seconds, meter.read(), layers.spilled_bytes, resumed, tuple(reports))
        _write_json(directory / CONFIG_FILE, _config(checkpoint, graph, plan))
        (directory / PLAN_FILE).write_text(dumps(plan), encoding="utf-8")
        _write_json(directory / BUILD_FILE, {**build, SECTION: to_json(report)})
        _copy_assets(assets, directory)
        lowering.write(directory)
        Manifest.of(directory, loadable_engines(graph, plan, lowering.own_names), report.smoothed).write(directory)


def stage_tensors(out: Path, stage_index: int) -> dict[str, Tensor]:
    """The tensors of one stage as stored, memory-mapped, from that stage's file alone.

    Raises CheckpointError when the file is missing or not, byte by byte, what the manifest says.
    """
    count = len(read_plan(out).stages)
    if not 0 <= stage_index < count:
        raise InputError(f"{out}: no stage {stage_index}; its stages are 0 to {count - 1}")
    name = stage_file(stage_index, count)
    check_bytes(out, name)
    file = TensorFile.open(out / name)
    return {tensor: file.tensor(tensor) for tensor in file.infos}


def tensors_by_name(out: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of whatever stages, memory-mapped, from the files that hold them and no others, every byte of which is compared.

    Names that no file has are left out. Raises CheckpointError.
    """
    places = read_json(out / INDEX_FILE)["weight_map"]
    files: dict[str, list[str]] = {}
    for name in names:
        if name in places:
            files.setdefault(places[name], []).append(name)
    found: dict[str, Tensor] = {}
    for file, held in files.items():
        check_bytes(out, file)
        opened = TensorFile.open(out / file)
        found |= {name: opened.tensor(name) for name in held}
    return found


def compute_dtype(plan: Plan) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[plan.compute_dtype]


def require_original(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError for a checkpoint that is quantized already."""
    if "quantization_config" in checkpoint.config:
        raise CheckpointError(f"{checkpoint.directory}: already quantized; compile the original 16-bit model")


def layer_quantizer(
    quantizer: Quantizer, graph: LayerGraph, plan: Plan, source: SourceTensors, directory: Path
) -> LayerQuantizer:
    """What carries out `quantizer` on the layers of a plan; `directory` takes activations that do not fit in memory."""
    if isinstance(quantizer, Gptq):
        from llmpq.quantization.calibrated_layers import CalibratedLayers

        precisions = {name: precision for name, _, precision in quantized_linears(graph, plan)}
        return CalibratedLayers(quantizer, graph, precisions, source, source.dtype, directory)
    return RoundedLayers(quantizer.clip)


def _require_shapes(checkpoint: Checkpoint, graph: LayerGraph, plan: Plan, stages: tuple[tuple[Placement, ...], ...]) -> None:
    placements = {placement.name: placement for stage in stages for placement in stage}
    for name, linear, _ in quantized_linears(graph, plan):
        placement = placements[f"{name}.weight"]
        found, expected = source_shape(checkpoint, placement), (linear.out_features, linear.in_features)
        if found != expected:
            part = "" if placement.cut is None else f" of {name}"
            raise CheckpointError(
                f"{checkpoint.directory}: {placement.sources[0]}{part} is {list(found)}, expected {list(expected)}; "
                "is config.json of another model?"
            )


def _write_stages(
    journal: Journal,
    source: SourceTensors,
    stages: tuple[tuple[Placement, ...], ...],
    layers: LayerQuantizer,
    progress: Progress | None,
) -> None:
    """The files of all stages and their index."""
    directory, checkpoint = journal.directory, source.checkpoint
    total = sum(source_bytes(checkpoint, placement) for stage in stages for placement in stage)
    done, stored_bytes = 0, 0
    weight_map: dict[str, str] = {}

    def written(placement: Placement) -> None:
        nonlocal done
        done += source_bytes(checkpoint, placement)
        if progress is not None:
            progress(placement.name, done, total)

    for index, stage in enumerate(stages):
        file = stage_file(index, len(stages))
        infos = write_stage(directory / file, source, stage, layers, journal, written)
        weight_map |= {info.name: file for info in infos}
        stored_bytes += sum(info.nbytes for info in infos)
    index_value = {"metadata": {"total_size": stored_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(directory / INDEX_FILE, index_value)


def text_config(config: Mapping[str, Any], graph: LayerGraph) -> Mapping[str, Any]:
    """The part of a multimodal model's config.json that the graph was traced from, as one of its own; other ones as they are."""
    text = config.get("text_config")
    if not isinstance(text, dict):
        return config
    return text | {"architectures": [graph.architecture], "tie_word_embeddings": graph.tied_head is not None}


def _config(checkpoint: Checkpoint, graph: LayerGraph, plan: Plan) -> dict[str, Any]:
    """The source's config.json, of a multimodal model its text part, with the compute dtype and every linear's quantization."""
    source = text_config(checkpoint.config, graph)
    config = {key: value for key, value in source.items() if key != "torch_dtype"} | {"dtype": plan.compute_dtype}
    modules = {name: (precision, linear.in_features) for name, linear, precision in quantized_linears(graph, plan)}
    whole = [
        f"{name}.{linear.name}"
        for layer, name in enumerate(graph.layer_names)
        for linear in graph.kind_of(layer).linears
        if f"{name}.{linear.stored[0].name}" not in modules
    ]
    section = quantization_config(modules, [*whole, graph.head])
    return config if section is None else config | {"quantization_config": section}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _copy_assets(assets: Path, directory: Path) -> None:
    for path in sorted({path for pattern in ASSETS for path in assets.glob(pattern) if path.is_file()}):
        shutil.copyfile(path, directory / path.name)
