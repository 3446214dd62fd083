"""The compiler: from model, cluster and workload to a plan, and on to a compiled model on disk that generates."""

import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Unpack

from llmpq.checkpoint.manifest import is_output
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.replacing import require_replaceable
from llmpq.checkpoint.shards import Progress, require_original, write_shards
from llmpq.compiled import CompiledModel, load
from llmpq.errors import InputError
from llmpq.frontend.models import (
    ModelSource,
    calibration_text,
    has_weights,
    load_tokenizer,
    read_utf8,
    resolve,
    token_ids,
    trace_source,
)
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.support import engines
from llmpq.options import Options, PlanningOptions
from llmpq.passmanager import PASSES, Observer, Pass, parse_pipeline, run_passes
from llmpq.planning.candidates import Candidate
from llmpq.planning.search import rows_of
from llmpq.precision import parse_precisions
from llmpq.program import Calibration, Program, Request
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import loads
from llmpq.solver.rules import parse_rules
from llmpq.suggest import did_you_mean
from llmpq.versions import library_versions
from llmpq.workload import Batch

__all__ = ["CompiledModel", "compile", "load", "plan", "prepare"]


def plan(
    model: Any,
    cluster: Cluster | str | Path,
    workload: Batch,
    *,
    observe: Observer | None = None,
    **options: Unpack[PlanningOptions],
) -> Program:
    """Decide, from the configuration alone: nothing is downloaded but config.json, and no weights are needed.

    Of a directory that holds weights the indicator `auto` reads them, so that the decision is that of `compile`.
    model: directory, hub id, `demo`, a bundled configuration's name, or a transformers nn.Module.
    Returns the program, whose `plan` is the decision. Raises InfeasibleError with reasons when there is none.
    """
    return _plan(resolve(model, weights=False), cluster, workload, Options(**options), observe)


def compile(
    model: Any,
    cluster: Cluster | str | Path,
    workload: Batch,
    *,
    out: str | Path | None = None,
    observe: Observer | None = None,
    progress: Progress | None = None,
    **options: Unpack[PlanningOptions],
) -> CompiledModel:
    """Plan, quantize and write one shard per stage to `out` (a temporary directory, removed with the result, by default)."""
    started = time.perf_counter()
    source = resolve(model, weights=True)
    if source.directory is None:
        raise InputError(
            f"model {source.name!r} is a configuration without weights; `plan` takes it, `compile` needs a directory or hub id"
        )
    checkpoint = Checkpoint.open(source.directory)
    require_original(checkpoint)
    keep = TemporaryOutput() if out is None else None
    directory = keep.path if keep is not None else Path(str(out))
    require_replaceable(directory, is_output)
    program = _plan(source, cluster, workload, Options(**options), observe)
    planned = time.perf_counter()
    build = {"planning_s": round(planned - started, 3), "versions": library_versions()}
    write_shards(
        directory, checkpoint, program.graph, program.require("plan"), assets=source.directory, build=build, progress=progress
    )
    return replace(load(directory), notices=program.request.cluster.notices + program.notices, _keep=keep)


class TemporaryOutput:
    """An output directory that is removed with this object."""

    def __init__(self) -> None:
        parent = Path(mkdtemp(prefix="llmpq-"))
        self.path = parent / "out"
        weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)


def prepare(
    model: Any,
    cluster: Cluster | str | Path,
    workload: Batch,
    *,
    observe: Observer | None = None,
    **options: Unpack[PlanningOptions],
) -> Program:
    """What plans are made from: graph, request, costs and sensitivity, and no plan yet. For questions about many plans."""
    return _prepare(resolve(model, weights=False), cluster, workload, Options(**options), observe)


def _plan(
    source: ModelSource, cluster: Cluster | str | Path, workload: Batch, options: Options, observe: Observer | None
) -> Program:
    assignment = _assignment(options.assign)
    return run_passes(_prepare(source, cluster, workload, options, observe), assignment, observe)


def _prepare(
    source: ModelSource, cluster: Cluster | str | Path, workload: Batch, options: Options, observe: Observer | None
) -> Program:
    if options.engine not in engines():
        raise InputError(
            f"engine {options.engine!r} is unknown; known are {', '.join(engines())}{did_you_mean(options.engine, engines())}"
        )
    request = Request(
        cluster=cluster if isinstance(cluster, Cluster) else Cluster.load(cluster),
        workload=workload,
        precisions=parse_precisions(options.precisions),
        target=options.target,
        rules=parse_rules(tuple(options.constraints)),
        engine=options.engine,
        gap=options.gap,
        time_limit_s=options.time_limit_s,
    )
    graph_module, graph = trace_source(source)
    if workload.kv_len > graph.max_positions:
        raise InputError(
            f"prompt_len {workload.prompt_len} + gen_len {workload.gen_len} needs {workload.kv_len} positions; "
            f"{graph.model} has {graph.max_positions}"
        )
    program = Program(graph, request, graph_module=graph_module)
    passes = parse_pipeline(f"derive-costs,estimate-sensitivity{{indicator={options.indicator}}}")
    rows_of(program, Candidate(tuple(range(len(request.cluster.devices))), 1, 1))  # rules that name what is not there, at once
    if options.sensitivity is not None:
        program = replace(program, sensitivity=_read_sensitivity(Path(options.sensitivity), program))
    return run_passes(replace(program, calibration=_calibration(source, options)), passes, observe)


def _assignment(text: str) -> tuple[Pass, ...]:
    """The passes of --assign; InputError when none of them makes a plan."""
    passes = parse_pipeline(text)
    if "plan" not in passes[-1].provides:
        raise InputError(f"--assign {text!r} makes no plan; choose one of {', '.join(p for p in PASSES if 'assign' in p)}")
    return passes


def _calibration(source: ModelSource, options: Options) -> Calibration | None:
    if source.directory is None or options.indicator == "prior" or options.sensitivity is not None:
        return None
    if not has_weights(source.directory):
        return None
    text, name = calibration_text(options.calibration)
    ids = tuple(token_ids(load_tokenizer(source.directory), text))
    if len(ids) < 2:
        raise InputError(f"calibration text {name} has {len(ids)} tokens; at least 2 are needed, some thousands are better")
    return Calibration(source.directory, ids, name)


def _read_sensitivity(path: Path, program: Program) -> SensitivityTable:
    """The table of a file, checked against the model and reordered to the request's precisions."""
    table = loads(SensitivityTable, read_utf8(path, "sensitivity"), str(path))
    wanted = tuple(precision.name for precision in program.request.precisions)
    missing = [name for name in wanted if name not in table.options]
    if missing or len(table.rows) != program.graph.num_layers:
        raise InputError(
            f"{path}: has {len(table.rows)} layers and options {', '.join(table.options)}; "
            f"expected {program.graph.num_layers} layers and {', '.join(wanted)}"
        )
    columns = [table.options.index(name) for name in wanted]
    return replace(table, options=wanted, rows=tuple(tuple(row[c] for c in columns) for row in table.rows))
