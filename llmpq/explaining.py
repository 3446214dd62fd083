"""Explaining: the program behind a plan on disk: its model's layer graph, its costs, the sensitivity that it was made with."""

import json
from dataclasses import replace
from pathlib import Path

from llmpq.answers.plan_file import load_plan
from llmpq.answers.subject import program_of
from llmpq.errors import InputError
from llmpq.frontend.cached_graphs import layer_graph_of
from llmpq.frontend.models import read_utf8, resolve
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.profiling.profile_file import read_profile
from llmpq.program import Program
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import from_json, loads

BUILD_FILE = "build.json"


def planned_program(
    path: Path, model: str | None = None, sensitivity: Path | None = None, profile: Path | None = None
) -> Program:
    """The program of a compiled model's directory or of a plan file. `model`: instead of the plan's own name for it.

    Sensitivity: the file's, else the one stored with a compiled model, else the prior. Raises InputError when the plan, the
    model or the table cannot be read, or do not belong together.
    """
    plan = load_plan(path)
    source = resolve(model or (path if path.is_dir() else plan.model), weights=False)
    graph = layer_graph_of(replace(source, name=plan.model)).with_cache(plan.kv_precision)
    if graph.num_layers != len(plan.options):
        raise InputError(f"{path}: plans {len(plan.options)} layers, {source.name} has {graph.num_layers}; give its --model")
    measured = None if profile is None else read_profile(profile, plan.engine)
    return program_of(graph, plan, _table(path, plan, graph, sensitivity), measured)


def _table(path: Path, plan: Plan, graph: LayerGraph, sensitivity: Path | None) -> SensitivityTable | None:
    table = stored_sensitivity(path) if path.is_dir() and sensitivity is None else None
    if sensitivity is not None:
        table = loads(SensitivityTable, read_utf8(sensitivity, "sensitivity"), str(sensitivity))
    wanted = plan.precisions or tuple(dict.fromkeys(plan.options))
    if table is not None and (len(table.rows) != graph.num_layers or not set(wanted) <= set(table.options)):
        found = f"{len(table.rows)} layers and options {', '.join(table.options)}"
        raise InputError(f"{sensitivity or path}: has {found}; expected {graph.num_layers} layers and {', '.join(wanted)}")
    return table


def stored_sensitivity(out: Path) -> SensitivityTable | None:
    """The table that a compiled model was planned with; None where its build.json has none."""
    build = out / BUILD_FILE
    value = json.loads(read_utf8(build, "build")).get("sensitivity") if build.is_file() else None
    return None if value is None else from_json(SensitivityTable, value, f"{build}: sensitivity")
