"""Plan file: a plan as `llmpq plan --json` and `llmpq compile` write it."""

import json
from pathlib import Path

from llmpq.errors import InputError
from llmpq.layer_option import SEPARATOR
from llmpq.options import PlanningOptions
from llmpq.plan import Plan
from llmpq.serialize import from_json, to_json

PLAN_FILE = "plan.json"


def load_plan(path: Path) -> Plan:
    """The plan of a compiled model's directory, or of a JSON file: the plan itself, or an object with a `plan` in it.

    Raises InputError when there is none.
    """
    file = path / PLAN_FILE if path.is_dir() else path
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = "give the output of `llmpq compile`, or of `llmpq plan --json > PLAN.json`"
        raise InputError(f"{file}: no such file, expected a plan; {remedy}") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}; `llmpq plan --json` writes a plan") from error
    found = value.get("plan") if isinstance(value, dict) and "plan" in value else value
    if found is None:
        raise InputError(f"{file}: holds no plan, its request was infeasible; change the request as its `fixes` say")
    plan: Plan = from_json(Plan, found, str(file))
    return plan


def options_of(plan: Plan, path: Path) -> PlanningOptions:
    """What a compilation is asked for so that it carries out the plan in the file `path`."""
    used = tuple(part for option in plan.options for part in option.split(SEPARATOR))
    file = json.dumps(str(path), ensure_ascii=False)
    return {
        "precisions": tuple(dict.fromkeys((*plan.precisions, *used))),
        "constraints": plan.constraints,
        "engine": plan.engine,
        "kv_precision": plan.kv_precision,
        "granularity": "part" if any(SEPARATOR in option for option in plan.options) else "layer",
        "assign": f"assign-given{{plan={file}}}",
    }


def save_plan(plan: Plan, path: str | Path) -> Path:
    """Write the plan to a file, as `llmpq plan --json` prints it; returns its path."""
    file = Path(path)
    file.write_text(json.dumps(to_json(plan), indent=2) + "\n", encoding="utf-8")
    return file
