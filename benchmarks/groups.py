"""Groups beside pipelines: the best plan of every size of tensor-parallel groups, for latency and for throughput.

python benchmarks/groups.py [--json FILE]        predictions for vLLM, 2 % more perplexity at most, one pipeline
"""

import json
import time
from argparse import ArgumentParser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import machine

from llmpq.compiler import prepare
from llmpq.errors import LlmpqError
from llmpq.plan import Optimality, Plan
from llmpq.planning.costing import on_groups
from llmpq.planning.fallback import search_or_explain
from llmpq.planning.joint import joint_plan
from llmpq.planning.make_plan import make_plan
from llmpq.printing import format_ranges
from llmpq.program import Program
from llmpq.units import format_seconds
from llmpq.workload import Batch, Serving, Workload

RESULT = Path(__file__).parent / "results" / "groups.json"
SIZES = (1, 2, 4, 8)
LIMIT_S = 10.0
ONE, MANY = Batch(1, 512, 200), Batch(32, 512, 200)
FULL, QUICK = Serving(4.0, 512, 200), Serving(4.0, 512, 200, tpot_s=0.05)
WORKLOADS: dict[str, Workload] = {"one sequence": ONE, "batch of 32": MANY, "serving": FULL, "serving, tpot at most 50 ms": QUICK}


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    cluster: str


CASES = (
    Case("llama-3-70b", "4xL4"),
    Case("llama-3-70b", "4xA100-80"),
    Case("llama-3-70b", "4xL40S"),
    Case("llama-3-70b", "2xA100-40,4xL4"),
    Case("llama-2-13b", "4xT4"),
)
Row = dict[str, Any]


def planned(program: Program) -> Plan:
    """The best plan of the program's own devices or groups."""
    answer = search_or_explain(replace(program, request=replace(program.request, tensor_parallel=1)))
    found = answer.found
    optimality = Optimality(found.objective, found.bound, found.proven, "exact search")
    return make_plan(program, found.candidate, found.problem, found.assignment, optimality, answer.budget)


def row(plan: Plan) -> Row:
    load = plan.prediction.load
    return {
        "tokens_per_s": plan.tokens_per_s,
        "tpot_s": plan.prediction.decode_s / (plan.workload.gen_len - 1) if load is None else load.tpot_s,
        "ttft_s": plan.prediction.prefill_s if load is None else load.ttft_s,
        "running": plan.batch.batch_size if load is None else load.running,
        "gap": plan.optimality.gap,
        "sensitivity": plan.quality.sensitivity,
        "stages": [f"{stage.device} {format_ranges(stage.options, stage.first_layer)}" for stage in plan.stages],
        "ranks": plan.ranks,
    }


def rows(case: Case, workload: Workload) -> dict[str, Row]:
    program = prepare(case.model, case.cluster, workload, engine="vllm", indicator="prior", time_limit_s=LIMIT_S)
    found: dict[str, Row] = {}
    for size in SIZES:
        try:
            place = on_groups(program, size)
            if place is not None:
                found[str(size)] = row(planned(place))
        except LlmpqError as error:
            found[str(size)] = {"error": str(error).splitlines()[0]}
    started = time.process_time()
    try:
        found["planned"] = {**row(joint_plan(program).require("plan")), "cpu_s": time.process_time() - started}
    except LlmpqError as error:
        found["planned"] = {"error": str(error).splitlines()[0]}
    return found


def cell(entry: Row | None) -> str:
    if entry is None:
        return ""
    if "error" in entry:
        return "none"
    return f"{entry['tokens_per_s']:.4g} ({format_seconds(entry['tpot_s'])})"


def main(target: Path) -> None:
    report: dict[str, Any] = {"machine": machine(), "limit_s": LIMIT_S, "cases": {}}
    print("| model, cluster | workload | 1 | 2 | 4 | 8 | planned |")
    print("|---" * 7 + "|")
    for case in CASES:
        for name, workload in WORKLOADS.items():
            found = rows(case, workload)
            report["cases"][f"{case.model} on {case.cluster}, {name}"] = found
            chosen = found["planned"].get("ranks", "none")
            cells = " | ".join(cell(found.get(str(size))) for size in SIZES)
            print(f"| {case.model}, {case.cluster} | {name} | {cells} | {chosen} |", flush=True)
    target.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, dest="target", default=RESULT)
    main(parser.parse_args().target)
