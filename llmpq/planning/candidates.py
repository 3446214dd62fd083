"""Candidates of the outer search: devices in order and micro-batch sizes, and the assignment problem of each."""

from dataclasses import replace
from math import inf

from llmpq.costs import CostTable, PhaseCosts, ServingStep
from llmpq.costs.kv_blocks import PAGED
from llmpq.costs.table import micro_batch_sizes, most_rows_of
from llmpq.costs.transfers import TOKEN_BYTES
from llmpq.errors import InputError
from llmpq.hardware.cluster import Cluster
from llmpq.hardware.link import Link
from llmpq.layer_option import mean_bits
from llmpq.plan import SERVED_TOKENS
from llmpq.planning.candidate import Candidate as Candidate
from llmpq.planning.candidate import Group as Group
from llmpq.planning.option_sets import only_options, option_sets
from llmpq.planning.orders import Order, identical_devices, link_table
from llmpq.planning.room import room_of
from llmpq.planning.rounds import cache_bytes, in_rounds, resident_batch, residents, rounds_of
from llmpq.program import Program
from llmpq.sensitivity import SensitivityTable
from llmpq.solver.problem import EndCost, Problem
from llmpq.solver.rules import RuleContext
from llmpq.workload import Serving, Workload


def candidate_groups(program: Program, *, together: bool = True) -> tuple[Group, ...]:
    """All devices `together`, and each kind of device alone, at every pair of micro-batch sizes; with a micro-batch for each
    stage where the engine keeps that many in flight.

    Alone is a case of its own because a tied head is then not copied.
    """
    workload, everything = program.request.workload, tuple(range(len(program.request.cluster.devices)))
    alone = tuple(twins[:1] for twins in identical_devices(program))
    if isinstance(workload, Serving):
        if program.request.target.theta is not None:
            raise InputError("theta weighs the seconds of a batch against quality; for serving give a quality target instead")
        steps: tuple[ServingStep, ...] = program.require("costs").steps
        flights = range(2, len(everything) + 1) if together else ()
        sets = (*((everything, count) for count in flights), *((devices, 1) for devices in alone))
        return tuple(Group(devices, step.token_budget, step.sequences, count) for devices, count in sets for step in steps)
    several = (everything,) if together and len(everything) > 1 else ()
    most_rows = most_rows_of(program.request.cluster.devices)
    sizes = [
        (*pair, resident, options)
        for resident in residents(program.request)
        for pair in micro_batch_sizes(resident_batch(workload, resident), len(everything), most_rows)
        for options in option_sets(program, *pair)
    ]
    if program.request.engine not in PAGED:
        everyone = (*several, *alone)
        return tuple(Group(devices, p, d, None, resident, options) for devices in everyone for p, d, resident, options in sizes)
    sets = (
        *((devices, count) for devices in several for count in range(2, len(devices) + 1)),
        *((devices, 1) for devices in alone),
    )
    return tuple(
        Group(devices, p, d, count, resident, options)
        for devices, count in sets
        for p, d, resident, options in sizes
        if d == -(-resident_batch(workload, resident).batch_size // count)
    )


def step_of(program: Program, candidate: Candidate) -> ServingStep:
    """The step of a serving candidate."""
    steps: tuple[ServingStep, ...] = program.require("costs").steps
    sizes = (candidate.decode_micro_batch, candidate.prefill_micro_batch)
    return next(step for step in steps if (step.sequences, step.token_budget) == sizes)


def ceiling(program: Program, candidate: Candidate) -> float:
    """The objective up to which the limits of a serving workload are kept; inf where there is none."""
    workload = program.request.workload
    if not isinstance(workload, Serving):
        return inf
    first = inf if workload.ttft_s is None else workload.ttft_s / step_of(program, candidate).trips_to_first_token
    return min(first, inf if workload.tpot_s is None else workload.tpot_s) * SERVED_TOKENS / candidate.running


def missed_limits(workload: Workload, factor: float) -> str:
    """What is told when every plan that fits breaks a limit of latency, all of them at least by that factor."""
    limits = [f"{name} of {getattr(workload, f'{name}_s'):g} s" for name in ("ttft", "tpot") if getattr(workload, f"{name}_s")]
    beyond = f"; every one exceeds a limit by a factor of {factor:.3g} or more" if factor > 1 else ""
    return f"no plan that fits keeps a {' and a '.join(limits)}{beyond}"


def rule_context(program: Program, candidate: Candidate) -> RuleContext:
    """What the user's rules are read against: the devices of this candidate, in its order."""
    cluster, graph, precisions = program.request.cluster, program.graph, program.request.precisions
    return RuleContext(
        num_layers=graph.num_layers,
        devices=tuple(cluster.devices[j].name for j in candidate.order),
        known_devices=tuple(device.name for device in cluster.devices),
        options=tuple(precision.name for precision in precisions),
        option_bits=tuple(mean_bits(option, graph.attention_share) for option in precisions),
        layer_parameters=tuple(graph.kind_of(i).parameters for i in range(graph.num_layers)),
    )


def build_problem(program: Program, candidate: Candidate, sensitivity_budget: float | None) -> Problem:
    """The inner problem of one candidate: contiguous ranges and an option per layer, in llmpq-problem-2."""
    costs: CostTable = program.require("costs")
    table: SensitivityTable = program.require("sensitivity")
    graph, workload, cluster = program.graph, program.request.workload, program.request.cluster
    prefill = costs.phase("prefill", candidate.prefill_micro_batch)
    decode = costs.phase("decode", candidate.decode_micro_batch)
    order = candidate.order
    room = room_of(program, candidate)
    resident = candidate.running if isinstance(workload, Serving) else resident_batch(workload, candidate.resident).batch_size
    problem = Problem(
        options=costs.options,
        devices=tuple(costs.devices[j] for j in order),
        layer_kind=graph.layer_kind,
        prefill_s=tuple(tuple(cells[j] for j in order) for cells in prefill.layer_s),
        decode_s=tuple(tuple(cells[j] for j in order) for cells in decode.layer_s),
        layer_bytes=_layer_bytes(costs, decode, order, cache_bytes(program, candidate)),
        first_stage=_ends(prefill.first_s, decode.first_s, room.first, order),
        last_stage=_ends(prefill.last_s, decode.last_s, (room.last,) * len(order), order),
        link_prefill_s=_links(cluster, order, prefill, candidate.prefill_micro_batch),
        link_decode_s=_links(cluster, order, decode, candidate.decode_micro_batch),
        overlap=False,
        capacity_bytes=room.capacity,
        sensitivity=table.rows,
        sensitivity_budget=sensitivity_budget,
        theta=program.request.target.theta,
        prefill_micro_batches=-(-resident // candidate.prefill_micro_batch),
        decode_micro_batches=-(-resident // candidate.decode_micro_batch),
        gen_len=workload.gen_len,
        decode_model="round_trip",
        every_device_used=False,
        first_and_last_used=False,
    )
    problem = only_options(problem, candidate.options)
    if isinstance(workload, Serving):
        return _steady(problem, candidate)
    return in_rounds(problem, rounds_of(workload, candidate.resident))


def _steady(problem: Problem, candidate: Candidate) -> Problem:
    """The problem of one trip of all batches in flight, in seconds of SERVED_TOKENS; nothing is prefilled apart."""
    scale, none = SERVED_TOKENS / candidate.running, (0.0,) * len(problem.devices)

    def scaled(end: EndCost) -> EndCost:
        return EndCost(none, tuple(scale * seconds for seconds in end.decode_s), end.bytes)

    return replace(
        problem,
        decode_s=tuple(tuple(tuple(None if s is None else scale * s for s in row) for row in kind) for kind in problem.decode_s),
        first_stage=scaled(problem.first_stage),
        last_stage=scaled(problem.last_stage),
        link_prefill_s=(none,) * len(problem.devices),
        link_decode_s=tuple(tuple(scale * seconds for seconds in row) for row in problem.link_decode_s),
        decode_micro_batches=candidate.in_flight or 1,
        gen_len=2,
    )


def _layer_bytes(
    costs: CostTable, phase: PhaseCosts, order: Order, cache: tuple[int, ...]
) -> tuple[tuple[tuple[int | None, ...], ...], ...]:
    """[kind][device][option]: weights and the cache of all sequences; None where the device cannot run the option."""
    return tuple(
        tuple(
            tuple(
                None if cell is None else weights + cache[k] for cell, weights in zip(phase.layer_s[k][j], costs.layer_bytes[k])
            )
            for j in order
        )
        for k in range(len(costs.kv_bytes))
    )


def _ends(prefill_s: tuple[float, ...], decode_s: tuple[float, ...], nbytes: tuple[int, ...], order: Order) -> EndCost:
    return EndCost(tuple(prefill_s[j] for j in order), tuple(decode_s[j] for j in order), nbytes)


def _links(cluster: Cluster, order: Order, costs: PhaseCosts, rows: int) -> tuple[tuple[float, ...], ...]:
    """Forward links carry the hidden state, backward ones (the return from last to first) the tokens.

    What each stage but the last takes beside its layers is with its forward link.
    """
    links = link_table(cluster)

    def seconds(a: int, b: int) -> float:
        i, j = order[a], order[b]
        link = links[i][j]
        return forward_s(link, costs, i) + costs.beside_s(i) if a < b else return_s(link, costs, i, rows)

    stages = range(len(order))
    return tuple(tuple(0.0 if a == b else seconds(a, b) for b in stages) for a in stages)


def forward_s(link: Link, costs: PhaseCosts, device: int) -> float:
    """Seconds of the hidden state on its way to the next stage, and of the stage before, on that device, on its messages."""
    return link.transfer_s(costs.hidden_bytes) + costs.messages_s(device)


def return_s(link: Link, costs: PhaseCosts, device: int, rows: int) -> float:
    """Seconds of the tokens of `rows` sequences on their way from the last stage, on that device, to the first."""
    return link.transfer_s(rows * TOKEN_BYTES) + costs.messages_s(device)
