"""Full search benchmark: plans for batch and serving on 19 clusters, with one pipeline and with several, beside every baseline.

python benchmarks/full_search.py [--case NUMBER]... [--workload batch|serving]    (also: python benchmarks/planner.py --search)
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

from machine import machine

from llmpq.compiler import plan as make_program
from llmpq.errors import InfeasibleError, LlmpqError, TimeLimitError
from llmpq.options import MOST_REPLICAS
from llmpq.passmanager import PASSES, parse_pipeline, run_passes
from llmpq.plan import Plan
from llmpq.planning import fit
from llmpq.planning.baselines import even_splits, only_option
from llmpq.planning.candidates import Group
from llmpq.planning.replicas import replicas
from llmpq.planning.search import Found, Start, search
from llmpq.planning.space import Space
from llmpq.printing import format_ranges
from llmpq.program import Program, Target
from llmpq.solver import milp, solve
from llmpq.solver.exact import answer as exact_answer
from llmpq.solver.exact import search as exact_search
from llmpq.solver.milp import breaks
from llmpq.solver.problem import Cells, Problem, evaluate
from llmpq.versions import library_versions
from llmpq.workload import Batch, Serving, Workload

RESULT = Path(__file__).parent / "results" / "full_search.json"
BATCH, SERVING = Batch(32, 512, 100), Serving(4.0, 512, 200)
FEW_DEVICES, FEW_LIMIT_S, MANY_LIMIT_S = 8, 5.0, 60.0
LADDER_LIMIT_S, LADDER_GAP = 5.0, 5e-3  # for each step; the search that is timed has its own
MOST_MIXES = 16  # of one precision for each type of device: more are not tried
JOINT = ("assign-joint", "assign-robust", "assign-given")
BASELINES = ("assign-hand", "assign-even", "assign-fastest")


@dataclass(frozen=True, slots=True)
class Case:
    """A model on a cluster; `engine`: for serving (a batch is planned for the local runtime)."""

    model: str
    cluster: str
    engine: str = "local"


CASES = (
    Case("opt-13b", "1xV100-32"),
    Case("opt-13b", "1xA100-40", "vllm"),
    Case("opt-30b", "3xT4+1xV100-32"),
    Case("opt-30b", "3xP100-12,1xV100-32"),
    Case("opt-66b", "4xT4,2xV100-32"),
    Case("opt-66b", "2xV100-32,2xA100-40"),
    Case("bloom-176b", "4xV100-32,4xA100-40"),
    Case("bloom-176b", "4xV100-32,2xA100-80"),
    Case("opt-30b", "4xT4", "vllm"),
    Case("opt-66b", "4xV100-32"),
    Case("bloom-176b", "4xA100-80", "vllm"),
    Case("qwen2.5-32b", "3xT4+1xV100-32"),
    Case("llama-3-70b", "4xL4,2xA100-40", "vllm"),
    Case("llama-3-70b", "2xRTX3090+1xRTX4090", "vllm"),
    Case("qwen2.5-32b", "1xA100-80,1xL4", "vllm"),
    Case("llama-3-70b", "2xT4,2xL4,2xV100-32,2xA100-40"),
    Case("bloom-176b", "4xT4,4xL4,4xV100-32,4xA100-40"),
    Case("llama-3-8b", "2xT4,4xL4,2xA100-40", "vllm"),
    Case("qwen2.5-7b", "4xL4", "vllm"),
)
ORIGINAL = 11  # the first ones are the clusters of the LLM-PQ paper (links assumed, it does not record them)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, action="append", help=f"1 to {len(CASES)}; all by default; the others are kept")
    parser.add_argument("--workload", choices=("batch", "serving"), help="both by default")
    parser.add_argument("--baselines", default=",".join((*BASELINES, *other_baselines())), help="passes, all by default")
    parser.add_argument("--table", action="store_true", help="print the results as they are, as the tables of docs/plans.md")
    parser.add_argument("--cpu-clock", action="store_true", help="limits in CPU seconds (one thread): for a busy machine")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(arguments)
    if given.table:
        print(markdown(json.loads(given.output.read_text())["cases"]))
        return
    if given.cpu_clock:
        time.monotonic = fit.monotonic = time.process_time
        for module in (exact_search, exact_answer, solve, milp):
            module.perf_counter = time.process_time
    report = json.loads(given.output.read_text()) if given.output.exists() else {"cases": {}}
    for number, name in product(given.case or range(1, len(CASES) + 1), ("batch", "serving")):
        if given.workload in (None, name):
            entry = {"clock": "cpu" if given.cpu_clock else "wall"}
            entry |= measured(CASES[number - 1], BATCH if name == "batch" else SERVING, tuple(given.baselines.split(",")))
            report["cases"][f"{number}-{name}"] = entry
            print(line(number, name, entry), flush=True)
            keep(given.output, report)
    print(summary(report["cases"]))


def keep(path: Path, report: dict[str, Any]) -> None:
    keys = sorted(report["cases"], key=lambda key: (int(key.split("-")[0]), key))
    ordered = {"machine": machine(), "versions": library_versions(), "cases": {key: report["cases"][key] for key in keys}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def measured(case: Case, workload: Workload, baselines: tuple[str, ...]) -> dict[str, Any]:
    """The plan and its search, the baselines under the same budget, and the ladder."""
    engine = case.engine if isinstance(workload, Serving) else "local"
    head = {"model": case.model, "cluster": case.cluster, "engine": engine}
    program = prepared(case, workload, engine)
    devices = len(program.request.cluster.devices)
    limit = FEW_LIMIT_S if devices <= FEW_DEVICES else MANY_LIMIT_S
    joint = solved(limited(program, limit), "assign-joint")
    found: dict[str, Any] = {**head, "devices": devices, "limit_s": limit, "joint": joint}
    if "error" in joint:
        return found
    program = limited(program, limit)
    found["baselines"] = {name: solved(program, name) for name in baselines}
    several = solved(several_allowed(program), "assign-joint")
    found["several"] = several
    if isinstance(workload, Batch):
        found["baselines"]["replicas"] = shared_out(program)
    found["never_worse"] = never_worse(program, joint, found["baselines"], several)
    found["ladder"] = ladder(limited(program, LADDER_LIMIT_S), joint)
    return found


def other_baselines() -> tuple[str, ...]:
    """Every assignment pass that is neither a joint one nor in BASELINES."""
    return tuple(name for name in PASSES if name.startswith("assign-") and name not in (*BASELINES, *JOINT))


def prepared(case: Case, workload: Workload, engine: str) -> Program:
    """The program with costs and the prior's sensitivity, by a pipeline that ends with the cheapest assignment."""
    stopped: list[Program] = []

    def observe(done: Any, program: Program) -> None:
        if done.name == "estimate-sensitivity":
            stopped.append(program)

    with suppress(InfeasibleError):  # of the even split: the state before it is what is wanted
        make_program(case.model, case.cluster, workload, engine=engine, assign="assign-even", indicator="prior", observe=observe)
    return replace(stopped[-1], notices=())


def limited(program: Program, limit_s: float) -> Program:
    return replace(program, request=replace(program.request, time_limit_s=limit_s))


def within(program: Program, budget: float | None) -> Program:
    return replace(program, request=replace(program.request, target=Target(budget, explicit=True)))


def solved(program: Program, name: str) -> dict[str, Any]:
    """One assignment: the plan in figures with the seconds that it took, or why there is none."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        plan: Plan = run_passes(program, parse_pipeline(name)).require("plan")
    except LlmpqError as error:
        return {"error": str(error).splitlines()[0], "wall_s": time.perf_counter() - wall}
    took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {**figures(plan), **took, "over_budget": plan.quality.budget != program.request.target.budget}


def figures(plan: Plan) -> dict[str, Any]:
    """The plan in figures; several pipelines one by one beside those of all together."""
    if len(plan.pipelines) > 1:
        weights = [pipeline.replica.weight for pipeline in plan.pipelines if pipeline.replica is not None]
        each = [{"weight": weight, **figures(one)} for weight, one in zip(weights, plan.replicas)]
        return {**overall(plan), "pipelines": each}
    load = plan.prediction.load
    sizes = [plan.pipeline.prefill_micro_batch, plan.pipeline.decode_micro_batch]
    return {
        **overall(plan),
        "sizes": sizes if load is None else [load.in_flight, load.running // load.in_flight, load.token_budget],
        "stages": [{"device": stage.device, "layers": format_ranges(stage.options, stage.first_layer)} for stage in plan.stages],
    }


def overall(plan: Plan) -> dict[str, Any]:
    optimality = plan.optimality
    return {
        "tokens_per_s": plan.tokens_per_s,
        "objective": optimality.objective,
        "bound": optimality.bound,
        "gap": optimality.gap,
        "proven": optimality.proven,
        "sensitivity": plan.quality.sensitivity,
    }


def several_allowed(program: Program) -> Program:
    """The program for which more than one pipeline may be planned, in the same time."""
    return replace(program, request=replace(program.request, replicas=MOST_REPLICAS))


def shared_out(program: Program) -> dict[str, Any]:
    """The baseline of one replica per device, of which no plan is made."""
    wall = time.perf_counter()
    try:
        found = replicas(program)
    except LlmpqError as error:
        return {"error": str(error).splitlines()[0], "wall_s": time.perf_counter() - wall}
    budget = program.request.target.budget
    over = budget is not None and found.sensitivity > budget * (1 + 1e-9)
    head = {"tokens_per_s": found.tokens_per_s, "sensitivity": found.sensitivity, "over_budget": over}
    return {**head, "devices": list(found.devices), "shares": list(found.shares), "wall_s": time.perf_counter() - wall}


def never_worse(
    program: Program, joint: dict[str, Any], baselines: dict[str, dict[str, Any]], several: dict[str, Any]
) -> dict[str, bool]:
    """Whether the joint plan is as fast as each baseline, up to the gap asked for; where one broke the budget, at its loss.

    The baseline of replicas is compared with the plan that may have several pipelines.
    """
    found = {}
    for name, entry in baselines.items():
        if "error" in entry:
            continue
        if name == "replicas":
            program, joint = several_allowed(program), several
        against = joint
        if entry["over_budget"]:
            against = solved(within(program, entry["sensitivity"] * (1 + 1e-6)), "assign-joint")
        found[name] = "error" not in against and against["tokens_per_s"] >= entry["tokens_per_s"] * (1 - program.request.gap)
    return found


def ladder(program: Program, joint: dict[str, Any]) -> list[dict[str, Any]]:
    """From the best even split to the joint plan, one freedom at a time, all within the budget of the joint plan.

    Each step: what is free, tokens per second, and whether that is proven the best; a step without a plan is left out.
    """
    asked = within(program, program.request.target.budget if not joint["over_budget"] else joint["sensitivity"] * (1 + 1e-6))
    names = program.require("costs").options
    uniform = tuple(map(only, range(len(names))))
    even = max(
        (start for b in range(len(names)) for start in best_even(asked, b)), key=lambda start: -objective(start), default=None
    )
    steps: list[tuple[str, float | None, bool]] = []
    found: Found | None = None
    if even is not None:
        option = even[2].option[0]
        steps.append((f"even split at {names[option]}", speed_of(asked, objective(even)), True))
        found = best(asked, Space(restrictions=(uniform[option],)), even)
        steps.append(("partition, devices, order, sizes", *told(asked, found)))
    found = best(asked, Space(restrictions=uniform), found) or found
    steps.append(("precision, one for all", *told(asked, found)))
    steps.append(("precision per type of device", *told(asked, best_by_type(asked, found))))
    last = "precision per layer"
    if isinstance(program.request.workload, Serving) and found is not None:
        space = Space(accept=up_to(found.candidate.running))
        steps.append(("precision per layer, no more sequences at once", *told(asked, best(asked, space, found))))
        last = "more sequences at once"
    single = joint if program.request.tensor_parallel == 1 else solved(without_groups(asked), "assign-joint")
    if "error" not in single:
        steps.append((last, single["tokens_per_s"], single["proven"]))
    if single is not joint:
        steps.append(("tensor-parallel groups", joint["tokens_per_s"], joint["proven"]))
    return [{"free": name, "tokens_per_s": speed, "proven": proven} for name, speed, proven in steps if speed is not None]


def without_groups(program: Program) -> Program:
    return replace(program, request=replace(program.request, tensor_parallel=1))


def told(program: Program, found: Found | None) -> tuple[float | None, bool]:
    return (None, False) if found is None else (speed_of(program, found.objective), found.proven)


def objective(start: Start) -> float:
    return evaluate(start[1], start[2]).objective


def only(option: int) -> Callable[[Problem], Problem]:
    return lambda problem: only_option(problem, option)


def up_to(running: int) -> Callable[[Program, tuple[Group, ...]], tuple[Group, ...]]:
    return lambda _, groups: tuple(group for group in groups if group.candidate().running <= running)


def best(program: Program, space: Space, start: Start | Found | None = None) -> Found | None:
    """The best plan of the space, None when there is none; `start`: a plan of it to begin with."""
    if isinstance(start, Found):
        start = (start.candidate, start.problem, start.assignment)
    try:
        starts = () if start is None else (start,)
        return search(program, program.request.target.budget, space=space, starts=starts, gap=LADDER_GAP)
    except (InfeasibleError, TimeLimitError):
        return None


def speed_of(program: Program, objective: float) -> float:
    workload = program.request.workload
    return 1000.0 / objective if isinstance(workload, Serving) else workload.batch_size * workload.gen_len / objective


def best_even(program: Program, option: int) -> tuple[Start, ...]:
    """Even splits over all devices at one precision that fit and keep the budget."""
    budget = program.request.target.budget
    return tuple(
        start for start in even_splits(program, option) if not breaks(replace(start[1], sensitivity_budget=budget), (), start[2])
    )


def best_by_type(program: Program, start: Found | None) -> Found | None:
    """Every device type at one precision of its own; None where the combinations are too many to try."""
    types = sorted({device.type.name for device in program.request.cluster.devices})
    options = range(len(program.require("costs").options))
    if len(options) ** len(types) > MOST_MIXES:
        return None
    mixes = (dict(zip(types, mix)) for mix in product(options, repeat=len(types)))
    return best(program, Space(restrictions=tuple(by_type(program, mix) for mix in mixes)), start)


def by_type(program: Program, mix: dict[str, int]) -> Callable[[Problem], Problem]:
    kept = {device.name: mix[device.type.name] for device in program.request.cluster.devices}

    def restrict(problem: Problem) -> Problem:
        def cells(values: Cells) -> Any:
            return tuple(
                tuple(
                    tuple(cell if b == kept[name] else None for b, cell in enumerate(row))
                    for name, row in zip(problem.devices, kind)
                )
                for kind in values
            )

        changed = {name: cells(getattr(problem, name)) for name in ("prefill_s", "decode_s", "layer_bytes")}
        return replace(problem, **changed)

    return restrict


def line(number: int, name: str, entry: dict[str, Any]) -> str:
    head = f"{number:2} {name:7} {entry['model']:12} {entry['cluster']:30} {entry['engine']:5}"
    joint = entry["joint"]
    if "error" in joint:
        return f"{head} no plan: {joint['error'][:90]}"
    told = []
    for baseline, other in entry["baselines"].items():
        shown = "none" if "error" in other else f"{other['tokens_per_s']:.1f}{'*' * other['over_budget']}"
        told.append(f"{baseline.removeprefix('assign-')} {shown}")
    gap = f"gap {joint['gap']:.2%} {'proven' if joint['proven'] else 'open'}"
    speed = f"{joint['tokens_per_s']:.1f}{'*' * joint['over_budget']} tokens/s"
    return f"{head} {joint['cpu_s']:6.2f} s  {gap}  {speed}; {', '.join(told)}; {climbed(entry)}; {several_cells(entry)}"


def climbed(entry: dict[str, Any]) -> str:
    """The ladder as factors."""
    steps = entry["ladder"]
    pairs = pairwise(steps)
    return ", ".join(
        f"{after['free']}{'?' * (not after['proven'])} x{after['tokens_per_s'] / before['tokens_per_s']:.2f}"
        for before, after in pairs
    )


def markdown(cases: dict[str, Any]) -> str:
    """A table for each workload, and one of the ladders as factors."""
    names = ("even split", "partition", "one precision", "by device type", "by layer", "more at once", "groups", "in all")
    ladders = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines = []
    for name in ("batch", "serving"):
        lines += [
            "",
            f"| {name} | model | cluster | engine | joint | hand | even | fastest | gap | CPU s | pipes | gain | gap | CPU s |",
        ]
        lines += ["|---" * 14 + "|"]
        for number in range(1, len(CASES) + 1):
            entry = cases.get(f"{number}-{name}")
            if entry is None or "error" in entry["joint"]:
                continue
            joint, others = entry["joint"], entry["baselines"]
            cells = [f"**{joint['tokens_per_s']:.4g}**", *(speed_cell(others[baseline]) for baseline in BASELINES)]
            gap = f"{joint['gap']:.2%}{'' if joint['proven'] else ' open'}"
            where = f"| {number} | {entry['model']} | {entry['cluster']} | {entry['engine']} "
            lines.append(
                where + "".join(f"| {cell} " for cell in (*cells, gap, f"{joint['cpu_s']:.1f}", *several_cells(entry))) + "|"
            )
            ladders.append(f"| {number} {name} | " + " | ".join(ladder_cells(entry["ladder"])) + " |")
    return "\n".join([*lines, "", *ladders])


def several_cells(entry: dict[str, Any]) -> list[str]:
    """Where more than one pipeline may be planned: how many there are, the factor that they bring, gap and seconds."""
    several, joint = entry.get("several"), entry["joint"]
    if several is None or "error" in several:
        return ["-", "", "", ""]
    factor = several["tokens_per_s"] / joint["tokens_per_s"]
    gap = f"{several['gap']:.2%}{'' if several['proven'] else ' open'}"
    return [str(len(several.get("pipelines", "1"))), f"x{factor:.2f}", gap, f"{several['cpu_s']:.1f}"]


def speed_cell(entry: dict[str, Any]) -> str:
    return "none" if "error" in entry else f"{entry['tokens_per_s']:.4g}{'*' * entry['over_budget']}"


def ladder_cells(steps: list[dict[str, Any]]) -> list[str]:
    """Tokens per second of the even split, then the factor of each step against the one before it that has a plan."""
    placed = "even split", "partition", "precision, one", "precision per type", "precision per layer"
    places = (*placed, "more sequences", "tensor-parallel groups")
    found = ["-"] * len(places)
    before: float | None = None
    for step in steps:
        place = next(place for place, name in enumerate(places) if step["free"].startswith(name))
        speed = step["tokens_per_s"]
        found[place] = f"{speed:.4g}" if before is None else f"x{speed / before:.2f}{'' if step['proven'] else '?'}"
        before = speed
    return [*found, f"x{steps[-1]['tokens_per_s'] / steps[0]['tokens_per_s']:.2f}" if len(steps) > 1 else "-"]


def summary(cases: dict[str, Any]) -> str:
    planned = {key: entry for key, entry in cases.items() if "error" not in entry["joint"]}
    lines = []
    for what, chosen in (("up to 8 devices", lambda n: n <= FEW_DEVICES), ("16 devices", lambda n: n > FEW_DEVICES)):
        entries = [entry for entry in planned.values() if chosen(entry["devices"])]
        if entries:
            seconds = [entry["joint"]["cpu_s"] for entry in entries]
            proven = sum(entry["joint"]["proven"] for entry in entries)
            gaps = max(entry["joint"]["gap"] for entry in entries)
            lines.append(
                f"{what}: {len(entries)} plans, median {median(seconds):.2f} s of CPU, longest {max(seconds):.2f} s, "
                f"{proven} proven, largest gap {gaps:.2%}"
            )
    worse = [f"{key} {name}" for key, entry in planned.items() for name, fine in entry["never_worse"].items() if not fine]
    compared = sum(len(entry["never_worse"]) for entry in planned.values())
    lines.append(f"{compared} comparisons with baselines, worse in {len(worse)}: {', '.join(worse) or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
