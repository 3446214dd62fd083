"""Support matrix: what each engine can do with a precision on a device, by rules with a source each."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from llmpq.bundled import bundled_yaml
from llmpq.errors import InputError
from llmpq.hardware.devices import DeviceType, parse_capability
from llmpq.layer_option import LayerOption
from llmpq.precision import CachePrecision, Precision
from llmpq.suggest import did_you_mean

Level = Literal["native", "dequantize", "unsupported"]
LEVELS: tuple[Level, ...] = ("native", "dequantize", "unsupported")


@dataclass(frozen=True, slots=True)
class Support:
    """native: kernels on packed weights; dequantize: runs, at the speed of 16 bits; unsupported: must not be planned."""

    level: Level
    reason: str
    source: str


@dataclass(frozen=True, slots=True)
class _Rule:
    """Answers for the device kinds, the capabilities in [minimum, below) and the precisions that it names; () means all."""

    kinds: tuple[str, ...]
    precisions: tuple[str, ...]
    minimum: tuple[int, int] | None
    below: tuple[int, int] | None
    lacks: str | None
    answer: Support

    def matches(self, device_type: DeviceType, precision: str) -> bool:
        capability = device_type.compute_capability or (0, 0)
        return (
            (not self.kinds or device_type.kind in self.kinds)
            and (not self.precisions or precision in self.precisions)
            and (self.minimum is None or capability >= self.minimum)
            and (self.below is None or capability < self.below)
            and (self.lacks is None or device_type.peak_flops(self.lacks) is None)
        )


def engines() -> tuple[str, ...]:
    return tuple(_matrix())


def support(engine: str, device_type: DeviceType, option: LayerOption) -> Support:
    """The first rule of the engine that matches; of an option's precisions the answer of the one that is supported least.

    Raises InputError for an unknown engine.
    """
    answers = [_support(engine, device_type, precision) for precision in option.parts]
    return max(answers, key=lambda answer: LEVELS.index(answer.level))


def _support(engine: str, device_type: DeviceType, precision: Precision) -> Support:
    rules = _matrix()[_known(engine)]
    if device_type.precisions is not None and precision.name not in device_type.precisions:
        listed = ", ".join(device_type.precisions)
        return Support("unsupported", f"the precisions listed for {device_type.name} are {listed}", device_type.source)
    return next(rule.answer for rule in rules if rule.matches(device_type, precision.name))


def cache_support(engine: str, device_type: DeviceType, precision: CachePrecision) -> Support:
    """What the engine can do with a KV cache at that precision; dequantize: keys and values become 16-bit before attention.

    Raises InputError for an unknown engine.
    """
    if precision == "16":
        return Support("native", "keys and values in the compute dtype", _data()["sources"]["own"])
    return next(rule.answer for rule in _caches()[_known(engine)] if rule.matches(device_type, precision))


def supported_precisions(engine: str, device_type: DeviceType, options: tuple[LayerOption, ...]) -> tuple[LayerOption, ...]:
    """Those of `options` that are native or dequantized, in their order."""
    return tuple(option for option in options if support(engine, device_type, option).level != "unsupported")


def compute_dtype(device_types: tuple[DeviceType, ...], engine: str) -> Literal["bfloat16", "float16"]:
    """bfloat16 if every device and the engine has it, else float16: one dtype for the whole plan."""
    has_bf16 = _known(engine) not in _data()["float16_only"] and all(device_type.supports_bf16 for device_type in device_types)
    return "bfloat16" if has_bf16 else "float16"


def needs_one_kind(engine: str) -> bool:
    """Whether one instance of the engine runs on devices of one kind only: cuda, rocm or cpu."""
    return _known(engine) in _data()["one_kind"]


def tensor_parallel_sizes(engine: str) -> tuple[int, ...]:
    """The ranks that a tensor-parallel group of the engine may have; () where it knows none."""
    return tuple(_data()["tensor_parallel"].get(_known(engine), ()))


def _known(engine: str) -> str:
    if engine not in _matrix():
        raise InputError(f"engine {engine!r} is unknown; known are {', '.join(engines())}{did_you_mean(engine, engines())}")
    return engine


@cache
def _matrix() -> dict[str, tuple[_Rule, ...]]:
    return _rules("engines")


@cache
def _caches() -> dict[str, tuple[_Rule, ...]]:
    return _rules("caches")


def _rules(section: str) -> dict[str, tuple[_Rule, ...]]:
    sources = _data()["sources"]
    return {engine: tuple(_read_rule(rule, sources) for rule in rules) for engine, rules in _data()[section].items()}


@cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = bundled_yaml("support.yaml")
    return data


def _read_rule(rule: dict[str, Any], sources: dict[str, str]) -> _Rule:
    return _Rule(
        kinds=tuple(rule.get("kinds", ())),
        precisions=tuple(rule.get("precisions", ())),
        minimum=parse_capability(rule["minimum"]) if "minimum" in rule else None,
        below=parse_capability(rule["below"]) if "below" in rule else None,
        lacks=rule.get("lacks"),
        answer=Support(rule["level"], rule["reason"], sources[rule["source"]]),
    )
