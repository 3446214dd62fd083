"""Problem: where each layer of one ordered pipeline runs and at which option, as plain numbers."""

import json
import math
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmpq.errors import InputError
from llmpq.serialize import from_json, to_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DecodeModel = Literal["round_trip", "per_token_flush", "llm_pq"]
Phase = Literal["prefill", "decode"]
Sense = Literal["<=", ">=", "=="]
Cells = tuple[tuple[tuple[float | None, ...], ...], ...]  # [kind][device][option], None = unsupported
Matrix = tuple[tuple[float, ...], ...]
PROBLEM_FORMAT = "llmpq-problem-2"
IGNORED_KEYS = ("name", "best_known")  # of the files in the planning data
RELATIVE_TOLERANCE = 1e-9  # rounding of sums of floats: quality budget and rows of floats, never bytes


@dataclass(frozen=True, slots=True)
class EndCost:
    """What the first or the last used device pays on top of its layers, per device: seconds per micro-batch, bytes."""

    prefill_s: tuple[float, ...]
    decode_s: tuple[float, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One pipeline in device order with fixed batch sizes; DESIGN.md, Planning, has the format.

    prefill_s, decode_s, layer_bytes:  [kind][device][option], seconds per micro-batch and bytes; None = unsupported
    link_prefill_s, link_decode_s:     [from][to] seconds; decode also charges [last used][first used], the return
    sensitivity:                       [layer][option], nats per token; theta in seconds per nat per token, None = 0
    Raises InputError, naming the key, when sizes disagree or a number is not finite.
    """

    options: tuple[str, ...]
    devices: tuple[str, ...]
    layer_kind: tuple[int, ...]
    prefill_s: Cells
    decode_s: Cells
    layer_bytes: tuple[tuple[tuple[int | None, ...], ...], ...]
    first_stage: EndCost
    last_stage: EndCost
    link_prefill_s: Matrix
    link_decode_s: Matrix
    overlap: bool
    capacity_bytes: tuple[int, ...]
    sensitivity: Matrix
    sensitivity_budget: float | None
    theta: float | None
    prefill_micro_batches: int
    decode_micro_batches: int
    gen_len: int
    decode_model: DecodeModel = "round_trip"
    every_device_used: bool = False
    first_and_last_used: bool = False
    format: str = PROBLEM_FORMAT

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_layers(self) -> int:
        return len(self.layer_kind)

    @property
    def num_kinds(self) -> int:
        return len(self.prefill_s)

    def supported(self, kind: int, device: int) -> tuple[int, ...]:
        """Options that a layer of that kind may take on that device."""
        return tuple(option for option, cell in enumerate(self.layer_bytes[kind][device]) if cell is not None)

    @property
    def required_devices(self) -> tuple[int, ...]:
        """Devices that must hold a layer."""
        last = len(self.devices) - 1
        if self.every_device_used:
            return tuple(range(last + 1))
        return tuple(dict.fromkeys((0, last))) if self.first_and_last_used else ()

    def array(self, name: str) -> "NDArray[np.float64]":
        """A field as a float array; unsupported cells are NaN."""
        import numpy as np

        return np.array(getattr(self, name), dtype=np.float64)

    @staticmethod
    def from_json(value: Any, where: str = "problem") -> "Problem":
        """The problem of a parsed JSON object; `name` and `best_known` are not part of it."""
        if not isinstance(value, dict):
            raise InputError(f"{where}: found {type(value).__name__}, expected an object of format {PROBLEM_FORMAT}")
        if value.get("format") != PROBLEM_FORMAT:
            raise InputError(f"{where}: format is {value.get('format')!r}, expected {PROBLEM_FORMAT!r}")
        missing = [field.name for field in fields(Problem) if field.name not in value]
        if missing:
            raise InputError(f"{where}: key {missing[0]!r} is missing; {PROBLEM_FORMAT} needs it")
        known = {key: item for key, item in value.items() if key not in IGNORED_KEYS}
        problem: Problem = from_json(Problem, known, where)
        return problem

    def to_json(self) -> dict[str, Any]:
        result: dict[str, Any] = to_json(self)
        return result


@dataclass(frozen=True, slots=True)
class Assignment:
    """Device index and option index, one entry per layer."""

    device: tuple[int, ...]
    option: tuple[int, ...]

    @property
    def used_devices(self) -> tuple[int, ...]:
        """Devices that hold a layer, in the order of the layers."""
        return tuple(dict.fromkeys(self.device))


@dataclass(frozen=True, slots=True)
class Row:
    """A linear constraint over z[layer, device, option] in {0, 1}; `label` says it in the user's words."""

    label: str
    coefficients: tuple[tuple[int, int, int, float], ...]
    sense: Sense
    rhs: float

    def holds(self, assignment: Assignment) -> bool:
        """Whether the assignment satisfies the row, up to the rounding of a sum of floats."""
        chosen = zip(assignment.device, assignment.option)
        taken = {(layer, device, option) for layer, (device, option) in enumerate(chosen)}
        terms = [c for layer, device, option, c in self.coefficients if (layer, device, option) in taken]
        difference = math.fsum(terms) - self.rhs
        slack = RELATIVE_TOLERANCE * max(1.0, abs(self.rhs))
        return (self.sense == ">=" or difference <= slack) and (self.sense == "<=" or difference >= -slack)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Objective and its parts in seconds, sum of sensitivity, bytes per device, and what the assignment breaks.

    An assignment with an unsupported cell costs infinity.
    """

    objective: float
    prefill_s: float
    decode_s: float
    latency_s: float
    sensitivity: float
    bytes: tuple[int, ...]
    violations: tuple[str, ...]


def load_problem(path: Path) -> Problem:
    """The problem in a file; InputError names the file when it is missing or not JSON."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"problem file {str(path)!r} cannot be read: {error.strerror}; check the path") from error
    except ValueError as error:
        raise InputError(f"problem file {str(path)!r} is not JSON: {error}") from error
    return Problem.from_json(value, str(path))


def evaluate(problem: Problem, assignment: Assignment) -> Evaluation:
    """Costs of an assignment by the formulas of DESIGN.md, Costs and Planning; link times follow the order of use."""
    sensitivity = math.fsum(problem.sensitivity[layer][option] for layer, option in enumerate(assignment.option))
    prefill_s = prefill_latency(problem, *phase_times(problem, assignment, "prefill"))
    decode_s = decode_latency(problem, *phase_times(problem, assignment, "decode"))
    latency = prefill_s + decode_s
    held = _bytes(problem, assignment)
    violations = _violations(problem, assignment, sensitivity, held)
    objective = latency + (problem.theta or 0.0) * sensitivity
    return Evaluation(objective, prefill_s, decode_s, latency, sensitivity, held, violations)


def prefill_latency(problem: Problem, stages: list[float], links: list[float]) -> float:
    """Seconds of all prefill micro-batches, for seconds of one on each used stage and on the link that leaves it."""
    total, slowest = _sum_and_max(problem, stages, links)
    return total + (problem.prefill_micro_batches - 1) * slowest


def decode_latency(problem: Problem, stages: list[float], links: list[float]) -> float:
    """Seconds of all decoding, likewise; the last link is the return to the first stage."""
    total, slowest = _sum_and_max(problem, stages, links)
    rounds, micro_batches = problem.gen_len - 1, problem.decode_micro_batches
    if problem.decode_model == "round_trip":
        return rounds * max(total, micro_batches * slowest)
    if problem.decode_model == "per_token_flush":
        return rounds * (total + (micro_batches - 1) * slowest)
    return total + rounds * (micro_batches - 1) * slowest


def phase_times(problem: Problem, assignment: Assignment, phase: Phase) -> tuple[list[float], list[float]]:
    """Seconds of a micro-batch on every used device, in order of use, and on the link that leaves it; prefill returns nothing."""
    used = assignment.used_devices
    if phase == "prefill":
        links = [problem.link_prefill_s[a][b] for a, b in pairwise(used)] + [0.0]
        first, last = problem.first_stage.prefill_s, problem.last_stage.prefill_s
        return _stage_times(problem, problem.prefill_s, assignment, first, last), links
    links = [problem.link_decode_s[a][b] for a, b in zip(used, used[1:] + used[:1])]
    first, last = problem.first_stage.decode_s, problem.last_stage.decode_s
    return _stage_times(problem, problem.decode_s, assignment, first, last), links


def _stage_times(
    problem: Problem, cells: Cells, assignment: Assignment, first: tuple[float, ...], last: tuple[float, ...]
) -> list[float]:
    """Compute seconds of every used device, in order of use."""
    terms: dict[int, list[float]] = {device: [] for device in assignment.used_devices}
    for kind, device, option in zip(problem.layer_kind, assignment.device, assignment.option):
        cell = cells[kind][device][option]
        terms[device].append(math.inf if cell is None else cell)
    terms[assignment.device[0]].append(first[assignment.device[0]])
    terms[assignment.device[-1]].append(last[assignment.device[-1]])
    return [math.fsum(values) for values in terms.values()]


def _sum_and_max(problem: Problem, stages: list[float], links: list[float]) -> tuple[float, float]:
    total = math.fsum(stages + links)
    if problem.overlap:
        return total, max(stages + links)
    return total, max(stage + link for stage, link in zip(stages, links))


def _bytes(problem: Problem, assignment: Assignment) -> tuple[int, ...]:
    held = [0] * len(problem.devices)
    for kind, device, option in zip(problem.layer_kind, assignment.device, assignment.option):
        held[device] += problem.layer_bytes[kind][device][option] or 0
    held[assignment.device[0]] += problem.first_stage.bytes[assignment.device[0]]
    held[assignment.device[-1]] += problem.last_stage.bytes[assignment.device[-1]]
    return tuple(held)


def _violations(problem: Problem, assignment: Assignment, sensitivity: float, held: tuple[int, ...]) -> tuple[str, ...]:
    found, used, devices = [], assignment.used_devices, problem.devices
    for layer, (before, after) in enumerate(pairwise(assignment.device), start=1):
        if after < before:
            found.append(f"layer {layer} on {devices[after]} comes after layer {layer - 1} on {devices[before]}")
    for layer, (kind, device, option) in enumerate(zip(problem.layer_kind, assignment.device, assignment.option)):
        if problem.layer_bytes[kind][device][option] is None:
            found.append(f"layer {layer}: {problem.options[option]} is unsupported on {devices[device]}")
    for device in sorted(used):
        if held[device] > problem.capacity_bytes[device]:
            found.append(f"{devices[device]} holds {held[device]} bytes, its capacity is {problem.capacity_bytes[device]}")
    budget = problem.sensitivity_budget
    if budget is not None and sensitivity > budget + RELATIVE_TOLERANCE * max(abs(budget), RELATIVE_TOLERANCE):
        found.append(f"sensitivity {sensitivity:.6g} exceeds the budget {budget:.6g}")
    idle = [device for device in problem.required_devices if device not in used]
    found.extend(f"{devices[device]} holds no layer and must be used" for device in idle)
    return tuple(found)


def _check(problem: Problem) -> None:
    devices, options, layers = len(problem.devices), len(problem.options), problem.num_layers
    for key, count in (("options", options), ("devices", devices), ("layer_kind", layers), ("prefill_s", problem.num_kinds)):
        if not count:
            raise InputError(f"problem: {key} is empty; at least one entry is needed")
    for key in ("options", "devices"):
        if len(set(getattr(problem, key))) < len(getattr(problem, key)):
            raise InputError(f"problem: {key} has a name twice; names must be distinct")
    cells = (problem.num_kinds, devices, options)
    for key in ("prefill_s", "decode_s", "layer_bytes"):
        _check_array(key, getattr(problem, key), cells, negative=False)
    for key in ("link_prefill_s", "link_decode_s"):
        _check_array(key, getattr(problem, key), (devices, devices), negative=False)
    for end in ("first_stage", "last_stage"):
        for key in ("prefill_s", "decode_s", "bytes"):
            _check_array(f"{end}.{key}", getattr(getattr(problem, end), key), (devices,), negative=False)
    _check_array("capacity_bytes", problem.capacity_bytes, (devices,))
    _check_array("sensitivity", problem.sensitivity, (layers, options))
    _check_scalars(problem)
    _check_cells(problem)


def _check_array(key: str, value: Any, sizes: tuple[int, ...], negative: bool = True) -> None:
    if not sizes:
        if value is not None and (not math.isfinite(value) or (value < 0 and not negative)):
            raise InputError(f"problem: {key} is {value}; expected a finite number{'' if negative else ' that is not negative'}")
        return
    if len(value) != sizes[0]:
        raise InputError(f"problem: {key} has {len(value)} entries, expected {sizes[0]}")
    for index, item in enumerate(value):
        _check_array(f"{key}[{index}]", item, sizes[1:], negative)


def _check_scalars(problem: Problem) -> None:
    for key in ("prefill_micro_batches", "decode_micro_batches", "gen_len"):
        if getattr(problem, key) < 1:
            raise InputError(f"problem: {key} is {getattr(problem, key)}; it must be at least 1")
    _check_array("theta", problem.theta, (), negative=False)
    _check_array("sensitivity_budget", problem.sensitivity_budget, ())
    for layer, kind in enumerate(problem.layer_kind):
        if not 0 <= kind < problem.num_kinds:
            raise InputError(f"problem: layer_kind[{layer}] is {kind}, expected 0 to {problem.num_kinds - 1}")


def _check_cells(problem: Problem) -> None:
    for kind in range(problem.num_kinds):
        for device in range(len(problem.devices)):
            for option in range(len(problem.options)):
                found = {key: getattr(problem, key)[kind][device][option] for key in ("prefill_s", "decode_s", "layer_bytes")}
                if len({cell is None for cell in found.values()}) > 1:
                    keys = " and ".join(key for key, cell in found.items() if cell is None)
                    where = f"[{kind}][{device}][{option}]"
                    raise InputError(
                        f"problem: {keys} {where} is null and the others are not; unsupported cells are null in all three"
                    )
