"""The compiler: from model, cluster and workload to a plan, and on to a compiled model on disk that generates."""

import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Unpack

from llmpq.errors import CheckpointError, InfeasibleError, InputError
from llmpq.fix import Fix
from llmpq.frontend.cached_graphs import layer_graph_of, traced_module_of
from llmpq.frontend.choose_quantizer import choose_quantizer
from llmpq.frontend.models import ModelSource, has_weights, read_utf8, resolve
from llmpq.frontend.module_files import with_files
from llmpq.frontend.texts import CALIBRATE, bundled_text_notice, read_tokens
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.support import engines
from llmpq.layer_option import parse_options
from llmpq.options import AUTO_CACHE, Options, PlanningOptions
from llmpq.passmanager import Observer, Pass, parse_pipeline, run_passes
from llmpq.pipelines import Pipelines, pipelines
from llmpq.plan import Plan
from llmpq.planning.cache_choice import fastest_cache
from llmpq.planning.candidate import Candidate
from llmpq.planning.fixes import find_fixes
from llmpq.planning.search import rows_of
from llmpq.planning.uncut import uncut_notice, uncut_rules
from llmpq.precision import CachePrecision, parse_cache_precision
from llmpq.profiling.profile_file import profile_notices, read_profile
from llmpq.program import Calibration, Program, Request
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import loads, to_json
from llmpq.solver.rules import parse_rules
from llmpq.suggest import did_you_mean
from llmpq.versions import library_versions
from llmpq.workload import Workload

if TYPE_CHECKING:
    from llmpq.checkpoint.shards import Progress
    from llmpq.compiled import CompiledModel

QUICKLY_MEASURED = 10**8  # parameters: up to this size an indicator may run again for an explanation


def plan(
    model: Any,
    cluster: Cluster | str | Path,
    workload: Workload,
    *,
    observe: Observer | None = None,
    before: Observer | None = None,
    stop_after: str | None = None,
    **options: Unpack[PlanningOptions],
) -> Program:
    """Decide, from the configuration alone: nothing is downloaded but config.json, and no weights are needed.

    Of a directory that holds weights the indicator `auto` reads them, so that the decision is that of `compile`.
    model: directory, hub id, `demo`, a bundled configuration's name, or a transformers nn.Module.
    stop_after: the pass to go to instead, one before the plan is made or one of the lowering. `before` and `observe` are
    called with each pass and the program that it gets and makes.
    Returns the program, whose `plan` is the decision. Raises InfeasibleError with reasons when there is none.
    """
    given = Options(**options)
    passes = pipelines(given)
    chosen = passes.asked_for if stop_after is None else passes.until(stop_after)
    return _plan(resolve(model, weights=False), cluster, workload, given, chosen, observe, before)


def compile(
    model: Any,
    cluster: Cluster | str | Path,
    workload: Workload,
    *,
    out: str | Path | None = None,
    observe: Observer | None = None,
    before: Observer | None = None,
    progress: "Progress | None" = None,
    **options: Unpack[PlanningOptions],
) -> "CompiledModel":
    """Plan, quantize and write one shard per stage to `out` (a temporary directory, removed with the result, by default).

    model: directory, hub id, `demo`, or an nn.Module with weights; one that transformers cannot build is needed again by `load`.
    """
    from llmpq.checkpoint.lowering_file import Lowering
    from llmpq.checkpoint.output_directory import is_output
    from llmpq.checkpoint.reader import Checkpoint
    from llmpq.checkpoint.replacing import require_replaceable
    from llmpq.checkpoint.shards import require_original, write_shards
    from llmpq.compiled import load
    from llmpq.quality_loop import carry_out
    from llmpq.report.sources import write_report

    started = time.perf_counter()
    given = Options(**options)
    passes = _to_stages(pipelines(given))
    lowering = Lowering.of(passes.lowering)
    originals = TemporaryOutput()
    source = with_files(resolve(model, weights=True), originals.path)
    if source.directory is None:
        raise InputError(
            f"model {source.name!r} is a configuration without weights; `plan` takes it, `compile` needs a directory or hub id"
        )
    checkpoint = Checkpoint.open(source.directory)
    require_original(checkpoint)
    keep = TemporaryOutput() if out is None else None
    directory = keep.path if keep is not None else Path(str(out))
    require_replaceable(directory, is_output)
    program = _plan(source, cluster, workload, given, passes.planning, observe, before)
    if len(program.require("plan").pipelines) > 1:
        raise InputError("the plan has several pipelines; `llmpq.replicated.compile_replicas` writes them, a folder each")
    planned = time.perf_counter()
    run_passes(replace(program, graph_module=traced_module_of(source)), passes.lowering, observe, before)
    build: dict[str, Any] = {"planning_s": round(planned - started, 3), "versions": library_versions()}
    build["sensitivity"] = to_json(program.sensitivity)
    folder = source.directory

    def write(planned: Program) -> Program:
        name = given.quantizer if planned.graph.generates else "rtn"
        quantizer, told = choose_quantizer(source, folder, planned, name, given.calibration)
        plan = planned.require("plan")
        shared: dict[str, Any] = {"build": build, "quantizer": quantizer, "lowering": lowering, "progress": progress}
        write_shards(directory, checkpoint, planned.graph, plan, assets=folder, **shared)
        return told

    assignment = tuple(item for item in passes.planning if "plan" in item.provides)
    program = carry_out(program, write, assignment, folder, directory, given)
    write_report(directory, program.graph, program.request.profile)
    return replace(load(directory, source.module), notices=program.request.cluster.notices + program.notices, _keep=keep)


def _to_stages(passes: Pipelines) -> Pipelines:
    """The pipelines, when their lowering ends in stages that run; else InputError."""
    if not any("stages" in item.provides for item in passes.lowering):
        names = ", ".join(item.name for item in passes.lowering)
        raise InputError(f"the pipeline ends with {names} and makes no stages to run; add split-by-stage, or use `llmpq plan`")
    return passes


class TemporaryOutput:
    """An output directory that is removed with this object."""

    def __init__(self) -> None:
        parent = Path(mkdtemp(prefix="llmpq-"))
        self.path = parent / "out"
        weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)


def prepare(
    model: Any,
    cluster: Cluster | str | Path,
    workload: Workload,
    *,
    observe: Observer | None = None,
    **options: Unpack[PlanningOptions],
) -> Program:
    """What plans are made from: graph, request, costs and sensitivity, and no plan yet. For questions about many plans."""
    given = Options(**options)
    passes = tuple(item for item in pipelines(given).planning if "plan" not in item.provides)
    return run_passes(_start(resolve(model, weights=False), cluster, workload, given, passes), passes, observe)


def _plan(
    source: ModelSource,
    cluster: Cluster | str | Path,
    workload: Workload,
    options: Options,
    passes: tuple[Pass, ...],
    observe: Observer | None,
    before: Observer | None,
) -> Program:
    if options.kv_precision == AUTO_CACHE:
        chosen = fastest_cache(
            lambda kept: _plan(source, cluster, workload, replace(options, kv_precision=kept), passes, observe, before)
        )
        return chosen
    cut = next((index for index, item in enumerate(passes) if "plan" in item.provides), len(passes))
    program = _start(source, cluster, workload, options, passes)
    try:
        program = run_passes(program, passes[:cut], observe, before)
        return run_passes(program, passes[cut:], observe, before)
    except InfeasibleError as error:
        assignment = tuple(item for item in passes if "plan" in item.provides)
        raise InfeasibleError(error.reasons, _fixes(program, assignment, options)) from error


def _fixes(program: Program, assignment: tuple[Pass, ...], options: Options) -> tuple[Fix, ...]:
    """Single changes that make a plan possible, each planned again by the same passes."""
    costs, estimation = (
        parse_pipeline(text) for text in ("derive-costs", f"estimate-sensitivity{{indicator={options.indicator}}}")
    )

    def plan_again(changed: Program) -> Plan:
        planned: Plan = run_passes(changed, (*costs, *assignment)).require("plan")
        return planned

    def estimate(changed: Program) -> SensitivityTable | None:
        if options.sensitivity is not None or (changed.calibration and changed.graph.parameters > QUICKLY_MEASURED):
            return None
        return run_passes(changed, estimation).sensitivity

    return find_fixes(program, plan_again, estimate)


def _start(
    source: ModelSource, cluster: Cluster | str | Path, workload: Workload, options: Options, passes: tuple[Pass, ...]
) -> Program:
    """What is known before the first pass; the traced graph, which takes torch, only where one of the passes requires it."""
    if options.engine not in engines():
        raise InputError(
            f"engine {options.engine!r} is unknown; known are {', '.join(engines())}{did_you_mean(options.engine, engines())}"
        )
    found = cluster if isinstance(cluster, Cluster) else Cluster.load(cluster)
    profile = None if options.profile is None else read_profile(Path(options.profile), options.engine)
    request = Request(
        cluster=found if profile is None else profile.applied(found),
        workload=workload,
        precisions=parse_options(options.precisions, options.granularity),
        target=options.target,
        rules=parse_rules(tuple(options.constraints)),
        engine=options.engine,
        gap=options.gap,
        time_limit_s=options.time_limit_s,
        replicas=options.replicas,
        tensor_parallel=options.group_size,
        profile=profile,
        queue=options.queue,
    )
    graph = layer_graph_of(source).with_cache(_cache_of(options))
    request = replace(request, rules=(*request.rules, *uncut_rules(graph)))
    if workload.kv_len > graph.max_positions:
        raise InputError(
            f"prompt_len {workload.prompt_len} + gen_len {workload.gen_len} needs {workload.kv_len} positions; "
            f"{graph.model} has {graph.max_positions}"
        )
    traced = any("graph_module" in item.requires for item in passes)
    program = Program(graph, request, graph_module=traced_module_of(source) if traced else None)
    if profile is not None:
        program = replace(program, notices=profile_notices(profile, graph, request))
    rows_of(program, Candidate(tuple(range(len(request.cluster.devices))), 1, 1))  # rules that name what is not there, at once
    if options.sensitivity is not None:
        program = replace(program, sensitivity=_read_sensitivity(Path(options.sensitivity), program))
    can_measure = graph.generates and source.module is None
    calibration, told = _calibration(source, options) if can_measure else None, None
    if calibration is not None and options.calibration is None:
        told = bundled_text_notice("sensitivity is measured", source.name, "--calibration")
    notices = tuple(notice for notice in (told, uncut_notice(graph)) if notice)
    return replace(program, calibration=calibration, notices=program.notices + notices)


def _cache_of(options: Options) -> CachePrecision:
    if options.kv_precision == AUTO_CACHE:
        raise InputError("--kv-precision auto compares plans; for this question name one: 16, int8 or fp8")
    return parse_cache_precision(options.kv_precision)


def _calibration(source: ModelSource, options: Options) -> Calibration | None:
    if source.directory is None or options.indicator == "prior" or options.sensitivity is not None:
        return None
    if not has_weights(source.directory):
        return None
    try:
        ids, name = read_tokens(source.directory, options.calibration or CALIBRATE)
    except CheckpointError:
        if options.indicator == "auto" and options.calibration is None:
            return None  # no tokenizer: the prior
        raise
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
    return table.select(wanted)
