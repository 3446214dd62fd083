"""Subject: a plan that questions are asked about, as the assignment problem that it solves."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from time import monotonic

from llmpq.costs.profile import Profile
from llmpq.graph import LayerGraph
from llmpq.layer_option import parse_options
from llmpq.plan import Optimality, Plan
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.costing import costed, on_groups_of
from llmpq.planning.make_plan import make_plan
from llmpq.planning.robust import Choice, choice_of
from llmpq.planning.search import search
from llmpq.program import MOST_RANKS, Program, Request, Target
from llmpq.sensitivity import SensitivityTable, prior, with_prior_cache
from llmpq.solver.problem import Assignment, Evaluation, Problem, evaluate
from llmpq.solver.rules import parse_rules

GAP = 1e-4  # relative, of every search for an answer: differences below it are nothing
CHANGED = 1e-3  # relative difference of the objective above which the costs are others than the plan was made with


@dataclass(frozen=True, slots=True)
class Subject:
    """A program with costs, sensitivity and plan; the plan as candidate, problem and assignment; seconds of each search."""

    program: Program
    candidate: Candidate
    problem: Problem
    assignment: Assignment
    time_limit_s: float

    @staticmethod
    def of(program: Program, time_limit_s: float = 5.0) -> "Subject":
        plan: Plan = program.require("plan")
        program = on_groups_of(program, plan)
        candidate, assignment = choice_of(program, plan)
        problem = build_problem(program, candidate, plan.quality.budget)
        return Subject(program, candidate, problem, assignment, time_limit_s)

    @property
    def plan(self) -> Plan:
        plan: Plan = self.program.require("plan")
        return plan

    @property
    def evaluation(self) -> Evaluation:
        return evaluate(self.problem, self.assignment)

    def solved(self, program: Program | None = None, budget: float | None = None, known: Iterable[Choice] = ()) -> Plan | None:
        """The best plan of a changed program (by default its own) within a budget (by default the plan's); None: there is none.

        The search begins with the plan itself and those known. Raises TimeLimitError when nothing was found in time.
        """
        changed = self.program if program is None else program
        kept = self.plan.quality.budget if budget is None else budget
        choices = dict.fromkeys(((self.candidate, self.assignment), *known))
        starts = [(candidate, build_problem(changed, candidate, kept), assignment) for candidate, assignment in choices]
        found = search(changed, kept, starts=starts, gap=GAP, deadline=monotonic() + self.time_limit_s)
        if found is None:
            return None
        optimality = Optimality(found.objective, found.bound, found.proven, "exact search")
        return make_plan(changed, found.candidate, found.problem, found.assignment, optimality, kept)

    def with_rules(self, texts: Iterable[str]) -> Program:
        """The program with more constraints."""
        request = self.program.request
        return replace(self.program, request=replace(request, rules=(*request.rules, *parse_rules(tuple(texts)))))


def program_of(graph: LayerGraph, plan: Plan, table: SensitivityTable | None = None, profile: Profile | None = None) -> Program:
    """What the plan was made from, as far as it records it: costs derived again, sensitivity from a table, else the prior.

    Notices tell where the costs or the sensitivity are others than those that the plan was made with.
    """
    precisions = parse_options(plan.precisions or tuple(dict.fromkeys(plan.options)))
    rules = parse_rules(plan.constraints)
    queue = any(pipeline.resident is not None for pipeline in plan.pipelines)
    asked = (plan.cluster, plan.workload, precisions, _target(plan), rules, plan.engine)
    request = Request(*asked, tensor_parallel=MOST_RANKS, profile=profile, queue=queue)
    names = tuple(item.name for item in precisions)
    sensitivity = prior(graph, precisions) if table is None else with_prior_cache(table.select(names), graph)
    program = replace(costed(Program(graph, request)), sensitivity=sensitivity, plan=plan)
    return replace(program, notices=_differences(program, plan))


def _target(plan: Plan) -> Target:
    """The budget that the plan kept; where it kept none, the theta that its objective speaks of, if any."""
    if plan.quality.budget is not None or plan.prediction.load is not None or plan.quality.sensitivity <= 0:
        return Target(plan.quality.budget, explicit=True)
    weighed = plan.optimality.objective - plan.prediction.latency_s
    theta = weighed / plan.quality.sensitivity
    return Target(None, theta=theta if theta > GAP else None, explicit=True)


def _differences(program: Program, plan: Plan) -> tuple[str, ...]:
    told = []
    objective, recorded = Subject.of(program).evaluation.objective, plan.optimality.objective
    if abs(objective - recorded) > CHANGED * max(objective, recorded):
        told.append(f"the plan says {recorded:.6g} s, today's costs say {objective:.6g} s; answers are by today's costs")
    table: SensitivityTable = program.require("sensitivity")
    if table.provenance != plan.quality.provenance:
        told.append(f"the plan's sensitivity is by {plan.quality.provenance}; answers are by {table.provenance}")
    return tuple(told)
