"""First plans: assignments that fit at a glance, for when there is no time to search."""

from collections.abc import Iterator
from itertools import product

from llmpq.solver.problem import Assignment, Problem

FILLS = (0.5, 0.7, 0.85, 0.95, 1.0)  # of every device's memory: the less, the more even the stages
PRICES = (0.0, *(0.03 * 1.1**power for power in range(60)))  # of sensitivity against bytes, each in units of its sum
GOLDEN = 0.6180339887498949  # multiples of it, less whole numbers, spread evenly: layers that are alike change in turn


def first_plans(problem: Problem) -> Iterator[Assignment]:
    """Devices filled one after the other, each layer at the option that is cheapest at some price of sensitivity.

    Memory holds if the last device is used; the budget, rules and required devices may be broken.
    """
    for price, fill in product(PRICES, FILLS):
        found = _filled(problem, price, fill)
        if found is not None:
            yield found


def _filled(problem: Problem, price: float, fill: float) -> Assignment | None:
    devices: list[int] = []
    options: list[int] = []
    device, left = 0, _room(problem, 0, fill)
    for layer in range(problem.num_layers):
        while True:
            option = _cheapest(problem, layer, device, price)
            size = None if option is None else problem.layer_bytes[problem.layer_kind[layer]][device][option]
            if option is not None and size is not None and size <= left:
                break
            device += 1
            if device == len(problem.devices):
                return None
            left = _room(problem, device, fill)
        devices.append(device)
        options.append(option)
        left -= size
    return Assignment(tuple(devices), tuple(options))


def _room(problem: Problem, device: int, fill: float) -> float:
    """Bytes for layers on a device."""
    first = problem.first_stage.bytes[device] if device == 0 else 0
    last = problem.last_stage.bytes[device] if device == len(problem.devices) - 1 else 0
    return fill * (problem.capacity_bytes[device] - first - last)


def _cheapest(problem: Problem, layer: int, device: int, price: float) -> int | None:
    kind = problem.layer_kind[layer]
    options = problem.supported(kind, device)
    sizes = [problem.layer_bytes[kind][device][option] or 0 for option in options]
    lost = [problem.sensitivity[layer][option] for option in options]
    size_unit, lost_unit = sum(sizes) or 1, sum(map(abs, lost)) or 1.0
    price *= 0.5 + layer * GOLDEN % 1.0
    costs = [size / size_unit + price * value / lost_unit for size, value in zip(sizes, lost)]
    return min(zip(costs, options), default=(0.0, None))[1]
