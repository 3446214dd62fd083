"""Replicas: the baseline of one pipeline per device that holds the model alone, the batch shared out by speed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmpq.costs import derive_costs
from llmpq.errors import InfeasibleError
from llmpq.hardware.support import compute_dtype
from llmpq.planning.baselines import fastest_alone
from llmpq.program import Program
from llmpq.solver.problem import evaluate
from llmpq.workload import Batch, with_length

MOST = 8  # pipelines
ROUNDS = 3  # of sharing out the batch by the speeds of the round before

Shares = dict[int, int]  # device -> sequences


@dataclass(frozen=True, slots=True)
class Alone:
    """Seconds and loss of one device with its share."""

    seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Replicas:
    """Devices with a replica each, the sequences of each, and what is predicted of them together."""

    devices: tuple[str, ...]
    shares: tuple[int, ...]
    latency_s: float
    tokens_per_s: float
    sensitivity: float


def replicas(program: Program) -> Replicas:
    """Of the fastest devices as many as are best; the batch is done when the slowest replica is, the loss is that of the worst.

    Planned and scored, not run: a plan has one pipeline. Raises InfeasibleError where no device holds it, and under rules.
    """
    if program.request.rules:
        raise InfeasibleError(("replicas are not planned under constraints: they name the devices of one pipeline",))
    cache: dict[tuple[object, ...], Alone] = {}
    cluster, size = program.request.cluster, _batch_size(program)
    single = {device: found for device in range(len(cluster.devices)) if (found := _alone(program, device, 1, cache))}
    if not single:
        fastest_alone(program)  # which raises with the reasons
    able = sorted(single, key=lambda device: (single[device].seconds, device))[:MOST]
    rounds = [made for count in range(1, len(able) + 1) for made in _rounds(program, able[:count], size, cache)]
    if not rounds:
        raise InfeasibleError(("no device holds its share of the batch, though one holds a single sequence",))
    return min(rounds, key=lambda made: made.latency_s)


def _batch_size(program: Program) -> int:
    workload = program.request.workload
    assert isinstance(workload, Batch), "replicas share out a batch"
    return workload.batch_size


def _rounds(program: Program, devices: list[int], size: int, cache: dict[tuple[object, ...], Alone]) -> Iterator[Replicas]:
    """Equal shares, then shares by the speeds of the round before."""
    shares = _shared_out(size, dict.fromkeys(devices, 1.0))
    for _ in range(ROUNDS):
        found = {device: _alone(program, device, share, cache) for device, share in shares.items() if share}
        told = {device: alone for device, alone in found.items() if alone is not None}
        if len(told) < len(found):
            return
        latency = max(alone.seconds for alone in told.values())
        yield Replicas(
            devices=tuple(program.request.cluster.devices[device].name for device in told),
            shares=tuple(shares[device] for device in told),
            latency_s=latency,
            tokens_per_s=size * program.request.workload.gen_len / latency,
            sensitivity=max(alone.loss for alone in told.values()),
        )
        shares = _shared_out(size, {device: shares[device] / alone.seconds for device, alone in told.items()})


def _alone(program: Program, device: int, share: int, cache: dict[tuple[object, ...], Alone]) -> Alone | None:
    """The device with its share, None where it does not fit; equal devices with equal shares are planned once."""
    figures = program.request.cluster.devices[device]
    key = (figures.type, figures.memory_bytes, figures.reserve_bytes, figures.speed, share)
    if key not in cache:
        try:
            found = fastest_alone(_on(program, device, share)).found
        except InfeasibleError:
            return None
        cache[key] = Alone(found.objective, evaluate(found.problem, found.assignment).sensitivity)
    return cache[key]


def _on(program: Program, device: int, share: int) -> Program:
    """The program on one device with a share of the batch."""
    request = program.request
    only = replace(request.cluster, devices=(request.cluster.devices[device],), pairs=())
    alone = replace(request, cluster=only, workload=with_length(request.workload, "batch_size", share), rules=())
    dtype = compute_dtype((only.devices[0].type,), alone.engine)
    asked = (program.graph, only, alone.workload, alone.precisions, dtype, alone.engine)
    costs = derive_costs(*asked, profile=alone.profile)
    return replace(program, request=alone, costs=costs, compute_dtype=dtype)


def _shared_out(batch_size: int, weights: dict[int, float]) -> Shares:
    """Whole sequences in proportion to the weights, remainders to the largest fractions."""
    total = sum(weights.values())
    exact = {device: batch_size * weight / total for device, weight in weights.items()}
    shares = {device: int(value) for device, value in exact.items()}
    left = batch_size - sum(shares.values())
    for device in sorted(exact, key=lambda device: (shares[device] - exact[device], device))[:left]:
        shares[device] += 1
    return shares
