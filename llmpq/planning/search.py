"""The outer search: best first, bounds from cheap to dear, the joint problem solved for the candidates that can still win."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import count, islice, product
from math import inf
from typing import Literal

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.planning.bottleneck import bottleneck
from llmpq.planning.candidates import Candidate, Group, build_problem, ceiling, missed_limits, rule_context
from llmpq.planning.first_plans import first_plans
from llmpq.planning.order_free import OrderFree, Shares, Surroundings, order_free_model
from llmpq.planning.orders import Order, ascending, distinct_orders, identical_devices, teams
from llmpq.planning.quick_bounds import quick_bound
from llmpq.planning.realise import average_sensitivity, keep_devices, realise
from llmpq.planning.space import EVERYTHING, Space
from llmpq.program import Program
from llmpq.solver.milp import breaks, relaxation_bound
from llmpq.solver.problem import Assignment, Problem, Row, evaluate
from llmpq.solver.rules import rule_rows
from llmpq.solver.solve import solve
from llmpq.workload import Serving

FIRST_SLICE = 0.25  # of the time limit, for the first run on one candidate; each further one has twice that
ORDER_FREE_SLICE = 0.05
DIVE_SLICE = 0.05  # for an early run on the most promising order
ROUNDING = 1e-9  # relative, of a limit of the workload
ORDERS_AT_ONCE = 20  # of a team, looked at before the next ones are made
ORDER_FREE_GAP = 0.25  # of the gap of the search: what the order-free problem leaves open

Start = tuple[Candidate, Problem, Assignment]
Parts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The best assignment, its candidate and problem, and a bound that holds for every candidate, searched or not."""

    candidate: Candidate
    problem: Problem
    assignment: Assignment
    objective: float
    bound: float
    proven: bool


def rows_of(program: Program, candidate: Candidate) -> tuple[Row, ...]:
    """The user's rules as linear rows over this candidate."""
    return rule_rows(program.request.rules, rule_context(program, candidate))


def out_of_time(program: Program) -> TimeLimitError:
    """What is raised where the request's time limit ended before there was any plan."""
    return TimeLimitError(f"no plan was found within {program.request.time_limit_s:g} s; give more time with --time-limit")


def search(
    program: Program,
    budget: float | None,
    *,
    space: Space = EVERYTHING,
    starts: Iterable[Start] = (),
    gap: float | None = None,
    deadline: float | None = None,
) -> Found | None:
    """The best plan of the space, None when it is proven to hold none; `starts`: plans to begin with, feasible or not.

    `gap` and `deadline` (of time.monotonic) are those of the request by default.
    When the time is up before any plan was found: one that fits at a glance, or TimeLimitError when there is none such.
    Raises InfeasibleError when plans would fit, and none keeps the limits of a serving workload.
    """
    limit = program.request.time_limit_s
    deadline = time.monotonic() + limit if deadline is None else deadline
    gap = program.request.gap if gap is None else gap
    state = Search(program, budget, space, gap, deadline, identical_devices(program))
    for candidate, problem, assignment in starts:
        state.offer(candidate, problem, assignment)
    return state.run()


Level = Literal["group", "relaxed group", "sharp group", "team", "more orders", "order", "relaxed order"]
LEVELS: tuple[Level, ...] = ("group", "relaxed group", "sharp group", "team", "more orders", "order", "relaxed order")


@dataclass(frozen=True, slots=True)
class _Item:
    """Candidates that one bound covers: all of a group, those that use a whole team, its orders that are left, or one order.

    `slices`: runs on it; `orders`: those left.
    """

    level: Level
    group: Group
    restriction: int
    candidate: Candidate
    all_used: bool = False
    slices: int = 0
    orders: Iterator[Order] | None = None


@dataclass(slots=True)
class Search:
    """The state of one search: the heap of what may still win, by bound, and the bounds of what was closed.

    missed: the least factor by which what was dropped exceeds the limits of the workload.
    below: objectives from there on do not matter; it may only fall while the search goes on.
    relaxed_orders: how many orders were relaxed so far.

    A group is bounded by its order-free relaxation, split into teams (devices that are all used), a team into orders; an
    order is bounded by the relaxation of its problem and then solved. Nothing above the incumbent is looked at.
    """

    program: Program
    budget: float | None
    space: Space
    gap: float
    deadline: float
    identical: Parts
    best: Found | None = None
    heap: list[tuple[float, int, int, _Item]] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    number: "count[int]" = field(default_factory=count)
    rows: dict[Order, tuple[Row, ...]] = field(default_factory=dict)
    missed: float = inf
    below: float = inf
    relaxed_orders: int = 0

    @property
    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    @property
    def cutoff(self) -> float | None:
        """What an objective must be below to matter."""
        least = self.below if self.best is None else min(self.below, self.best.objective * (1.0 - self.gap))
        return None if least == inf else least

    @property
    def bound(self) -> float:
        """No candidate has an objective below this, as far as the search went; at most `below`."""
        open_items = self.heap[0][0] if self.heap else inf
        return min([*self.closed, open_items, self.below, inf if self.best is None else self.best.objective])

    def ceiling(self, candidate: Candidate) -> float:
        """The largest objective of this candidate that keeps the limits of the workload."""
        return ceiling(self.program, candidate) * (1.0 + ROUNDING) if self.space.limited else inf

    def wanted(self, candidate: Candidate) -> float | None:
        """What an objective of this candidate must be below."""
        least = min(inf if self.cutoff is None else self.cutoff, self.ceiling(candidate))
        return None if least == inf else least

    def close(self, bound: float, candidate: Candidate) -> None:
        """Nothing is left of the candidate below the bound, nor beyond its ceiling."""
        ceiling = self.ceiling(candidate)
        if bound < ceiling:
            self.closed.append(bound)
        elif ceiling < inf:
            self.missed = min(self.missed, 1.0)

    def run(self) -> Found | None:
        self.begin()
        return self.conclude(not self.proceed(self.deadline))

    def begin(self) -> None:
        """Everything of the space, with what is known of it at once."""
        for group in self.space.groups(self.program):
            quick = quick_bound(self.program, group, of_batches=self.space.whole)
            for restriction in range(len(self.space.restrictions) if quick < inf else 0):
                item = _Item("group", group, restriction, group.candidate(), self.space.whole)
                self.push(quick if self.space.limited else 0.0, item)

    def proceed(self, until: float) -> bool:
        """Go on until that moment (of time.monotonic); whether nothing is left that could win."""
        while self.heap:
            if min(until, self.deadline) <= time.monotonic():
                return False
            if self.cutoff is not None and self.heap[0][0] >= self.cutoff:
                self.closed.append(self.heap[0][0])
                self.heap.clear()
                return True
            bound, _, _, item = heappop(self.heap)
            self.steps[item.level](bound, item)
        return True

    def conclude(self, timed_out: bool) -> Found | None:
        if self.best is None and timed_out:
            self.offer_first_plans()
        if self.best is None:
            if timed_out:
                raise out_of_time(self.program)
            if self.missed < inf:
                raise InfeasibleError((missed_limits(self.program.request.workload, self.missed),))
            return None
        objective, bound = self.best.objective, self.bound
        return replace(self.best, bound=bound, proven=objective - bound <= self.gap * abs(objective) * (1 + 1e-9))

    def offer_first_plans(self) -> None:
        """What fits at a glance, at the smallest micro-batches of all devices and of each alone."""
        groups = self.space.groups(self.program)
        falling = sorted(groups, key=lambda group: (-group.prefill_micro_batch, -group.decode_micro_batch))
        smallest = {(group.devices, group.in_flight, group.resident, group.options): group for group in falling}
        for group, restriction in product(smallest.values(), range(len(self.space.restrictions))):
            item = _Item("group", group, restriction, group.candidate())
            problem = self.problem(item)
            for assignment in first_plans(problem):
                self.offer(item.candidate, problem, assignment)

    @property
    def steps(self) -> dict[Level, Callable[[float, _Item], None]]:
        """Learn the next thing about an item, and push what is left of it."""
        return {
            "group": self.relax_group,
            "relaxed group": self.sharpen_group,
            "sharp group": self.split_group,
            "team": self.split_team,
            "more orders": self.push_orders,
            "order": self.relax,
            "relaxed order": self.solve,
        }

    def relax_group(self, bound: float, item: _Item) -> None:
        found = self.order_free(item).relaxed(self.left)
        if found.value is not None:
            self.push(max(bound, found.value), replace(item, level="relaxed group"))

    def split_group(self, bound: float, item: _Item) -> None:
        """By the devices used; before that one problem of whole numbers bounds every order, or shows a good place to start."""
        model = self.order_free(item)
        if not model.is_small:
            self.start(item)
        else:
            wanted = self.wanted(item.candidate)
            found = model.integral(ORDER_FREE_GAP * self.gap, self.slice(ORDER_FREE_SLICE), wanted)
            if found.value is None:
                self.close(inf if wanted is None else wanted, item.candidate)
                return
            bound = max(bound, found.value)
            if found.shares is not None:
                candidate, assignment = self.realise(item, model, found.shares)
                self.offer(candidate, self.problem(replace(item, candidate=candidate)), assignment)
        self.split_use(bound, item)

    def split_use(self, bound: float, item: _Item) -> None:
        """By the devices used; of too many teams only what serves with all devices is looked at."""
        if self.space.whole:
            self.push_orders(bound, item)
            return
        members, in_flight = teams(self.identical), item.group.in_flight
        if len(item.group.devices) == 1 or (members is None and in_flight in (None, len(item.group.devices))):
            self.push_orders(bound, replace(item, all_used=in_flight is not None))
        elif members is None:
            self.close(bound, item.candidate)
        for team in members or () if len(item.group.devices) > 1 else ():
            if in_flight in (None, len(team)):
                self.push(bound, replace(item, level="team", candidate=item.group.candidate(team), all_used=True))

    def start(self, item: _Item) -> None:
        """The plan whose ranges are the best for layers of the average sensitivity, if there is one and it can still win."""
        problem, in_use = average_sensitivity(self.problem(item)), item.group.in_flight
        model = order_free_model(problem, self.surroundings(item), (), in_use)
        shares = model.integral(self.gap, self.slice(ORDER_FREE_SLICE), None).shares
        if shares is None:
            return
        candidate, ranges = self.realise(item, model, shares)
        problem, rows = self.problem(replace(item, candidate=candidate)), self.rows_of(candidate)
        rows = (*rows, *keep_devices(problem, ranges))
        limit, cutoff = self.slice(ORDER_FREE_SLICE), self.wanted(candidate)
        solution = solve(problem, gap=self.gap, time_limit_s=limit, rows=rows, cutoff=cutoff)
        if solution.assignment is not None:
            self.offer(candidate, problem, solution.assignment)

    def realise(self, item: _Item, model: OrderFree, shares: Shares) -> tuple[Candidate, Assignment]:
        candidate, assignment = realise(item.candidate, self.problem(item), model, shares)
        return replace(candidate, order=ascending(self.identical, candidate.order)), assignment

    def slice(self, share: float) -> float:
        """Seconds for one run: a share of the time limit, at most what is left of it."""
        return min(self.left, share * self.program.request.time_limit_s)

    def split_team(self, bound: float, item: _Item) -> None:
        found = self.order_free(item).relaxed(self.left)
        if found.value is None:
            return
        bound = self.sharpened(max(bound, found.value), item)
        if bound < inf:
            self.push_orders(bound, item)

    def sharpen_group(self, bound: float, item: _Item) -> None:
        bound = self.sharpened(bound, item)
        if bound < inf:
            self.push(bound, replace(item, level="sharp group"))

    def sharpened(self, bound: float, item: _Item) -> float:
        """The bound, or that of the slowest stage of a serving pipeline where it is higher."""
        wanted, in_use = self.wanted(item.candidate), item.group.in_flight
        high = inf if wanted is None else wanted
        serving = isinstance(self.program.request.workload, Serving)
        if not serving or in_use is None or in_use == 1 or not self.space.limited or not 0 < bound < high:
            return bound
        found = bottleneck(self.problem(item), self.surroundings(item), in_use, high)
        return bound if found is None else found.bound(bound, high)

    def push_orders(self, bound: float, item: _Item) -> None:
        orders = item.orders or distinct_orders(self.identical, item.candidate.order)
        several = tuple(islice(orders, ORDERS_AT_ONCE))
        for order in several:
            self.push(bound, replace(item, level="order", candidate=item.group.candidate(order), orders=None))
        if len(several) == ORDERS_AT_ONCE:
            self.push(bound, replace(item, level="more orders", orders=orders))

    def relax(self, bound: float, item: _Item) -> None:
        relaxed = relaxation_bound(self.problem(item), self.rows_of(item.candidate), self.left)
        if relaxed is not None:
            self.push(max(bound, relaxed), replace(item, level="relaxed order"))
        self.relaxed_orders += 1
        if self.relaxed_orders % ORDERS_AT_ONCE == 0:
            self.dive()

    def dive(self) -> None:
        """Solve the most promising of the orders relaxed so far: best first alone, all that tie come before any of them is."""
        entry = min((entry for entry in self.heap if entry[3].level == "relaxed order"), default=None)
        if entry is not None and (self.cutoff is None or entry[0] < self.cutoff):
            self.heap.remove(entry)
            heapify(self.heap)
            self.solve(entry[0], entry[3], DIVE_SLICE)

    def solve(self, bound: float, item: _Item, share: float = FIRST_SLICE) -> None:
        problem, rows = self.problem(item), self.rows_of(item.candidate)
        limit, cutoff = self.slice(share * 2**item.slices), self.wanted(item.candidate)
        solution = solve(problem, gap=self.gap, time_limit_s=limit, rows=rows, cutoff=cutoff)
        if solution.status == "infeasible":
            return
        if solution.bound is not None:
            bound = max(bound, min(solution.bound, inf if cutoff is None else cutoff))
        if solution.assignment is not None:
            self.offer(item.candidate, problem, solution.assignment)
        if solution.proven:
            self.close(bound, item.candidate)
        else:
            self.push(bound, replace(item, slices=item.slices + 1))

    def push(self, bound: float, item: _Item) -> None:
        ceiling = self.ceiling(item.candidate)
        if bound > ceiling:
            self.missed = min(self.missed, bound / ceiling)
            return
        heappush(self.heap, (bound, -LEVELS.index(item.level), next(self.number), item))

    def offer(self, candidate: Candidate, problem: Problem, assignment: Assignment) -> None:
        """Keep the assignment if it is feasible and the best so far."""
        if breaks(problem, self.rows_of(candidate), assignment):
            return
        if candidate.in_flight not in (None, len(assignment.used_devices)):
            return
        objective = evaluate(problem, assignment).objective
        if objective > self.ceiling(candidate):
            return
        if self.best is None or objective < self.best.objective:
            self.best = Found(candidate, problem, assignment, objective, 0.0, False)

    def problem(self, item: _Item) -> Problem:
        restrict = self.space.restrictions[item.restriction]
        problem = restrict(build_problem(self.program, item.candidate, self.budget))
        return replace(problem, every_device_used=True) if item.all_used else problem

    def rows_of(self, candidate: Candidate) -> tuple[Row, ...]:
        if candidate.order not in self.rows:
            self.rows[candidate.order] = rows_of(self.program, candidate)
        return self.rows[candidate.order]

    def order_free(self, item: _Item) -> OrderFree:
        """The model of the item's devices in any order."""
        rows = self.rows_of(item.candidate)
        return order_free_model(self.problem(item), self.surroundings(item), rows, item.group.in_flight)

    def surroundings(self, item: _Item) -> Surroundings:
        opposite = replace(item.candidate, order=item.candidate.order[::-1])
        backward = self.problem(replace(item, candidate=opposite))
        return Surroundings.of(self.problem(item), backward, *self.alike(item.candidate.order))

    def alike(self, order: Order) -> tuple[Parts, Parts]:
        """Groups of interchangeable devices and of devices on one host, as places in the order."""
        devices = self.program.request.cluster.devices
        place = {device: j for j, device in enumerate(order)}
        twins = (tuple(place[j] for j in group if j in place) for group in self.identical)
        hosts = dict.fromkeys(devices[j].host for j in order)
        together = (tuple(place[j] for j in order if devices[j].host == host) for host in hosts)
        return tuple(twins), tuple(together)
