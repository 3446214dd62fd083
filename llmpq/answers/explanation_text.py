"""Explanation text: an explanation in lines of plain words, at 80 columns where names are short."""

from typing import TYPE_CHECKING

from llmpq.answers.layers import Alternative, LayerAnswer, NextBest
from llmpq.answers.prices import Price
from llmpq.answers.stage_bounds import Bottleneck, PhaseBound, StageBounds
from llmpq.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from llmpq.answers.explanation import Explanation

BOUND_WORDS = {
    "compute": "arithmetic",
    "bandwidth": "memory bandwidth",
    "overhead": "launch overhead",
    "link": "the link to the next stage",
}
KIND_WORDS = {
    "memory": "memory",
    "speed": "device speed",
    "bandwidth": "memory bandwidth",
    "compute": "arithmetic",
    "link": "links",
    "quality": "the quality budget",
    "rule": "constraints",
}


def format_explanation(found: "Explanation") -> str:
    """All that was asked, a line each."""
    lines = [f"{found.model}: {found.tokens_per_s:.4g} tokens/s, objective {format_seconds(found.objective_s)}"]
    if found.layer is None:
        words = ", ".join(KIND_WORDS[kind] for kind in found.bound_by) or "nothing that was asked about"
        lines.append(f"bound by         {words}")
        lines += [_bottleneck(item) for item in found.bottlenecks]
    lines += [line for stage in found.stages for line in _stage(stage)]
    lines += [_idle(item.device, item.seconds) for item in found.idle]
    if found.layer is not None:
        lines += _layer(found.layer)
    if found.prices:
        lines.append("what would buy what (best plan again, everything else as it is)")
        lines += [f"  {_price(price, found.best_s)}" for price in found.prices]
    return "\n".join(lines)


def _bottleneck(item: Bottleneck) -> str:
    seconds = format_seconds(item.seconds)
    trip = "; a token waits for the trip through all stages" if item.by_trip else ""
    return f"{item.phase + ' waits for':<16} {item.device}, {seconds} a micro-batch, bound by {BOUND_WORDS[item.bound]}{trip}"


def _stage(stage: StageBounds) -> list[str]:
    memory = stage.memory
    room = f"{format_bytes(memory.total)} of {format_bytes(memory.capacity)}, {format_bytes(memory.capacity - memory.total)} left"
    phases = [("prefill", stage.prefill), ("decode", stage.decode)]
    head = f"{stage.device}: layers {stage.first_layer}-{stage.last_layer}; {room}"
    return [head, *(f"  {_phase(name, time)}" for name, time in phases if time is not None)]


def _phase(name: str, time: PhaseBound) -> str:
    parts = f"arithmetic {format_seconds(time.compute_s)}, memory {format_seconds(time.bandwidth_s)}"
    parts += f", launches {format_seconds(time.overhead_s)}"
    return f"{name:<8} {format_seconds(time.seconds):>8} + link {format_seconds(time.link_s)}; alone: {parts}"


def _idle(device: str, seconds: float | None) -> str:
    cost = "" if seconds is None else f": a layer on it costs {format_seconds(seconds)}"
    return f"{device}: idle{cost or '; `--device` tells what using it costs'}"


def _price(price: Price, best_s: float) -> str:
    what = f"{price.device}: {price.change}" if price.device else price.change
    if price.saved_s is None or price.more_tokens_per_s is None:
        return f"{what:<34} no plan was found in time"
    if not price.binds:
        return f"{what:<34} nothing"
    share = price.saved_s / best_s
    gain = f"saves {format_seconds(price.saved_s)} ({share:.2%}), +{price.more_tokens_per_s:.3g} tokens/s"
    return f"{what:<34} {gain}{'' if price.proven else ', not proven'}"


def _layer(layer: LayerAnswer) -> list[str]:
    why = " and ".join(layer.bound_by) or "speed: no other option here is faster"
    what = f"{layer.option} on {layer.device}, {format_bytes(layer.nbytes)}, {layer.nats:.2g} nats"
    lines = [f"layer {layer.layer}: {what}; bound by {why}", "instead, everything else as it is"]
    lines += [f"  {_alternative(item)}" for item in layer.alternatives]
    lines += ["instead, everything else planned again"]
    return lines + [f"  {_next_best(item)}" for item in layer.next_best]


def _alternative(item: Alternative) -> str:
    name = f"{item.option} on {item.device}"
    against = "; ".join(obstacle.words for obstacle in item.against)
    if item.seconds is None or item.nbytes is None:
        return f"{name}: {against}"
    return f"{name}: {_differences(item.seconds, item.nbytes, item.nats)}{'; ' + against if against else ''}"


def _next_best(item: NextBest) -> str:
    if item.seconds is None or item.nbytes is None or item.nats is None:
        return f"{item.without}: {item.reason}"
    changed = f"{item.others} other layer{'s' * (item.others != 1)} change{'s' * (item.others == 1)}"
    return f"{item.without}: {item.option} on {item.device}, {_differences(item.seconds, item.nbytes, item.nats)}; {changed}"


def _differences(seconds: float, nbytes: int, nats: float) -> str:
    sign = "-" if seconds < 0 else "+"
    held = "-" if nbytes < 0 else "+"
    return f"{sign}{format_seconds(abs(seconds))}, {held}{format_bytes(abs(nbytes))}, {nats:+.2g} nats"
