"""Realise: the shares of an order-free relaxation as ranges of layers in one order of the devices."""

import math
from dataclasses import replace

from llmpq.planning.candidate import Candidate
from llmpq.planning.order_free import OrderFree, Shares
from llmpq.solver.problem import Assignment, Matrix, Problem, Row

Members = tuple[tuple[int, ...], ...]


def realise(candidate: Candidate, problem: Problem, model: OrderFree, shares: Shares) -> tuple[Candidate, Assignment]:
    """The devices that are used in the order of the shortest next hop, and ranges of the shares' lengths on them.

    `problem` is the candidate's. Feasible where the layers are alike, else it may break memory or budget.
    """
    used = _nearest_next(shares, problem.link_prefill_s)
    order = tuple(candidate.order[j] for j in used)
    return replace(candidate, order=order), _in_turn(shares, used, model.members, problem.num_layers)


def _nearest_next(shares: Shares, hops: Matrix) -> list[int]:
    """Used devices from first to last, each followed by the nearest that is left."""
    between = {j for j, layers in enumerate(shares.layers) if layers} - {shares.first, shares.last}
    order = [shares.first]
    while between:
        here = order[-1]
        order.append(min(between, key=lambda j: (max(hops[here][j], hops[j][here]), j)))
        between.remove(order[-1])
    return order if shares.last == shares.first else [*order, shares.last]


def _in_turn(shares: Shares, order: list[int], members: Members, num_layers: int) -> Assignment:
    """Each layer takes an option of its class on its device while there is one left, then any that is."""
    class_of = {layer: number for number, layers in enumerate(members) for layer in layers}
    devices = [place for place, j in enumerate(order) for _ in range(shares.layers[j])]
    left = dict(shares.counts)
    options = []
    for layer in range(num_layers):
        device = order[devices[layer]]
        on = [cell for cell, number in left.items() if number and cell[1] == device]
        cell = min(on, key=lambda cell: (cell[0] != class_of[layer], cell[2], cell[0]))
        left[cell] -= 1
        options.append(cell[2])
    return Assignment(tuple(devices), tuple(options))


def average_sensitivity(problem: Problem) -> Problem:
    """The problem in which every layer is as sensitive as the average one of its kind."""
    rows: list[tuple[float, ...]] = []
    for kind in problem.layer_kind:
        alike = [row for other, row in zip(problem.layer_kind, problem.sensitivity) if other == kind]
        rows.append(tuple(math.fsum(column) / len(alike) for column in zip(*alike)))
    return replace(problem, sensitivity=tuple(rows))


def keep_devices(problem: Problem, assignment: Assignment) -> tuple[Row, ...]:
    """Rows that leave every layer on its device."""
    options = range(len(problem.options))
    return tuple(
        Row(f"layer {layer} on {problem.devices[device]}", tuple((layer, device, b, 1.0) for b in options), "==", 1.0)
        for layer, device in enumerate(assignment.device)
    )
