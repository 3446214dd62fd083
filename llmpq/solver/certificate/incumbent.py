"""Incumbent: what an assignment costs, exactly, and what it breaks."""

from fractions import Fraction
from itertools import pairwise

from llmpq.solver.certificate.scaled import Scaled


def objective(scaled: Scaled, device: tuple[int, ...], option: tuple[int, ...]) -> Fraction:
    """Seconds, by the formula of Scaled; the assignment must be one that `refusal` has nothing against."""
    used = tuple(dict.fromkeys(device))
    prefill, decode = dict.fromkeys(used, 0), dict.fromkeys(used, 0)
    for kind, j, b in zip(scaled.kind, device, option):
        prefill[j] += scaled.prefill[kind][j][b] or 0
        decode[j] += scaled.decode[kind][j][b] or 0
    for ends, j in ((scaled.first, used[0]), (scaled.last, used[-1])):
        prefill[j] += ends[0][j]
        decode[j] += ends[1][j]
    after = dict(zip(used, (*used[1:], used[0])))
    links = {j: (0 if j == used[-1] else scaled.link_prefill[j][after[j]], scaled.link_decode[j][after[j]]) for j in used}
    join = max if scaled.overlap else int.__add__
    slowest_prefill = max(join(prefill[j], links[j][0]) for j in used)
    slowest_decode = max(join(decode[j], links[j][1]) for j in used)
    sum_prefill = sum(prefill[j] + links[j][0] for j in used)
    sum_decode = sum(decode[j] + links[j][1] for j in used)
    total = sum_prefill + scaled.slowest_prefill * slowest_prefill
    total += scaled.sum_decode * sum_decode + scaled.slowest_decode * slowest_decode
    total += scaled.rounds * max(sum_decode, scaled.micro_batches * slowest_decode)
    return Fraction(total + sum(scaled.loss[i][b] for i, b in enumerate(option)), scaled.unit)


def refusal(scaled: Scaled, device: tuple[int, ...], option: tuple[int, ...]) -> str | None:
    """The first constraint that the assignment breaks, or None."""
    if len(device) != scaled.layers or len(option) != scaled.layers:
        return f"the assignment has {len(device)} devices and {len(option)} options for {scaled.layers} layers"
    options = len(scaled.sensitivity[0])
    for i, (j, b) in enumerate(zip(device, option)):
        if not (0 <= j < scaled.devices and 0 <= b < options):
            return f"layer {i}: there is no device {j} with option {b}"
        if scaled.bytes[scaled.kind[i]][j][b] is None:
            return f"layer {i}: option {b} is unsupported on device {j}"
    for i, (before, after) in enumerate(pairwise(device), start=1):
        if after < before:
            return f"layer {i} on device {after} comes after layer {i - 1} on device {before}"
    return _overflow(scaled, device, option) or _over_budget(scaled, option) or _idle(scaled, device)


def _overflow(scaled: Scaled, device: tuple[int, ...], option: tuple[int, ...]) -> str | None:
    for j in dict.fromkeys(device):
        cells = (scaled.bytes[scaled.kind[i]][j][b] or 0 for i, (at, b) in enumerate(zip(device, option)) if at == j)
        held = sum(cells) + (scaled.first[2][j] if j == device[0] else 0) + (scaled.last[2][j] if j == device[-1] else 0)
        if held > scaled.capacity[j]:
            return f"device {j} holds {held} bytes, its capacity is {scaled.capacity[j]}"
    return None


def _over_budget(scaled: Scaled, option: tuple[int, ...]) -> str | None:
    total = sum(scaled.sensitivity[i][b] for i, b in enumerate(option))
    if scaled.budget is None or total <= scaled.budget:
        return None
    return f"sensitivity {total / scaled.unit:.9g} exceeds the budget {scaled.budget / scaled.unit:.9g}"


def _idle(scaled: Scaled, device: tuple[int, ...]) -> str | None:
    idle = [j for j in scaled.required if j not in device]
    return f"device {idle[0]} holds no layer and must be used" if idle else None
