"""Bench: the rows of one cluster: the search by hand, then every row in full, kept as they come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import click
from hetero.engine import EngineError
from hetero.hand import Partition, balanced, climb, dealt
from hetero.placing import Placed
from hetero.session import Measured, Session
from hetero.vllm_case import BATCH, PREFILLED, SERVED, SERVING_BUDGETS, UNIFORM, Case, batch_job, trace_job

REPEATS = 3
ENOUGH_S = 3.0  # of the rows beside the ones that take turns: not repeated further once they took so long
WORTH = 0.7  # a precision whose balanced partition is slower than this share of the best found is not searched further
BY_HAND_SERVED = 2  # of the best partitions for a batch, tried for serving


@dataclass(frozen=True, slots=True)
class Found:
    """A placement by hand and its tokens per second in one short measurement. `partition`: of `devices`, in that order;
    prefilled: prompts of a step, None: as many as fill the pipeline."""

    tokens_per_s: float
    option: str
    partition: Partition
    devices: tuple[int, ...]
    prefilled: int | None = None

    @property
    def name(self) -> str:
        in_order = self.devices == tuple(range(len(self.devices)))
        order = "" if in_order else f" on {_text(self.devices)}"
        return f"{self.option} {_text(self.partition)}{order}"


def promising_of_each(found: Sequence[Found]) -> list[Found]:
    """The fastest of every precision that reaches the share `WORTH` of the fastest of all."""
    fastest = sorted(found, key=lambda each: -each.tokens_per_s)
    of_each = {each.option: each for each in reversed(fastest)}
    return [each for each in of_each.values() if each.tokens_per_s >= WORTH * fastest[0].tokens_per_s]


@dataclass
class Bench:
    """`state`: what the JSON keeps of the cluster; `keep` writes it; others: also the rows beside llmpq and the best by hand."""

    case: Case
    made: Session
    state: dict[str, Any]
    keep: Callable[[], None]
    others: bool = True
    _everything: list[dict[str, Any]] = field(default_factory=lambda: [batch_job(BATCH.batch_size)])

    def measure(self) -> None:
        ranked = self.search()
        if ranked:
            self.rows(ranked)

    def search(self) -> list[Found]:
        """Every placement measured, the fastest first: partitions, then the best of each precision that is not far behind on
        other orders of the devices, then the best of those in other steps of prefill."""
        found: list[Found] = []
        for option in UNIFORM:
            possible = self.case.possible(option)
            start = balanced(possible, self.case.speeds)
            if start is None:
                continue

            def measured(lengths: Partition, option: str = option, possible: dict[Partition, Placed] = possible) -> float:
                return self._short("batch", f"{option} {_text(lengths)}", [possible[lengths]], self._everything)

            best = max((each.tokens_per_s for each in found), default=0.0)
            promising = measured(start) >= WORTH * best
            seen = climb(start, set(possible), measured) if promising else {start: measured(start)}
            if self.case.even in possible:
                seen[self.case.even] = measured(self.case.even)
            everything = tuple(range(len(start)))
            found += [Found(speed, option, lengths, everything) for lengths, speed in seen.items() if speed]
        for others in (self._orders, self._steps):
            for best in promising_of_each(found):
                found += others(best)
        return sorted(found, key=lambda each: -each.tokens_per_s)

    def _orders(self, best: Found) -> Iterator[Found]:
        """Every device keeps its layers; of more than two devices the slowest first, and the other way round."""
        rising = tuple(sorted(best.devices, key=lambda device: self.case.speeds[device]))
        for order in dict.fromkeys((best.devices[::-1], rising)):
            if order != best.devices:
                lengths = tuple(best.partition[best.devices.index(device)] for device in order)
                yield from self._tried(replace(best, devices=order, partition=lengths))

    def _steps(self, best: Found) -> Iterator[Found]:
        for prefilled in PREFILLED:
            yield from self._tried(replace(best, prefilled=prefilled), f" steps of {prefilled * BATCH.prompt_len}")

    def _tried(self, each: Found, steps: str = "") -> Iterator[Found]:
        placed = self._placed(each)
        if placed is not None:
            yield replace(each, tokens_per_s=self._short("batch", each.name + steps, [placed], self._everything))

    def _placed(self, each: Found) -> Placed | None:
        return self.case.place(each.partition, each.option, each.devices, prefilled=each.prefilled)

    def rows(self, ranked: list[Found]) -> None:
        in_order = (each for each in ranked if each.devices == tuple(range(len(each.devices))) and each.prefilled is None)
        even = next((each for each in in_order if each.partition == self.case.even), None)
        self._rows_of("batch", ranked[0].option, self._placed(ranked[0]), even and self._placed(even), self._everything)
        distinct = {(each.partition, each.option): each for each in reversed(ranked)}
        best = sorted(distinct.values(), key=lambda each: -each.tokens_per_s)[:BY_HAND_SERVED]
        tried = [found for each in best if (found := self._serving(each)) is not None]
        served_even = None if even is None else self._serving(even)
        if tried:
            _, placed, option = max(tried, key=lambda found: found[0])
            self._rows_of("serving", option, placed, served_even and served_even[1], [trace_job()])

    def _rows_of(self, load: str, option: str, hand: Placed | None, even: Placed | None, jobs: list[dict[str, Any]]) -> None:
        """llmpq within the loss of the precision that the best by hand has, in turns with it; the others after them."""
        budget = option if option in UNIFORM[1:] else UNIFORM[1]
        wanted = UNIFORM[1:] if load == "batch" and self.others else ()
        others = {f"llmpq at the loss of {o}": self.case.planned_placement(load, o) for o in wanted if o != budget}
        named = {"assign-hand": hand, "llmpq": self.case.planned_placement(load, budget), **others}
        self._in_turns(load, {name: placed for name, placed in named.items() if placed is not None}, jobs)
        if even is not None and self.others:
            self._add(load, "even split", [even], jobs)
        for name, placed, shares in self._without_pipeline(load) if self.others else ():
            self._rows_side_by_side(load, name, placed, shares)

    def _in_turns(self, load: str, named: dict[str, Placed], jobs: list[dict[str, Any]]) -> None:
        """One run of each, `REPEATS` times over: what the machine does meanwhile, it does to all."""
        if any((row["load"], row["row"]) == (load, "assign-hand") for row in self.state["rows"]):
            return
        runs: dict[str, list[Measured]] = {name: [] for name in named}
        failed: dict[str, str] = {}
        for turn in range(REPEATS * len(named)):
            name = list(named)[turn % len(named)]
            if name not in failed:
                try:
                    runs[name].append(self.made.measure([named[name]], jobs, 1, 0.0))
                except EngineError as error:
                    failed[name] = str(error)
        for name, placed in named.items():
            measured = failed.get(name) or merged(runs[name])
            self.state["rows"].append(as_row(load, name, [placed], measured, self.case.simulated(load, placed)))
            self._say(f"{load} {name}", self.state["rows"][-1].get("median"))

    def _serving(self, each: Found) -> tuple[float, Placed, str] | None:
        """The better of the budgets of a step, in one short measurement each."""
        tried = []
        for budget in SERVING_BUDGETS:
            placed = self.case.place_serving(each.partition, each.option, budget, each.devices)
            if placed is not None:
                name = f"{each.name} steps of {budget}"
                tried.append((self._short("serving", name, [placed], [trace_job()]), placed, each.option))
        return max(tried, key=lambda pair: pair[0], default=None)

    def _without_pipeline(self, load: str) -> Iterator[tuple[str, list[Placed], list[int]]]:
        """The fastest device alone; an engine per device, the batch shared by speed; each at the first precision that fits."""
        size, speeds = (BATCH.batch_size if load == "batch" else SERVED), self.case.speeds
        alone = self._alone(load, 0, size)
        if alone is not None:
            yield "fastest alone", [alone], [size]
        shares = [max(1, round(size * speed / sum(speeds))) for speed in speeds]
        shares[0] += size - sum(shares)
        replicas = [self._alone(load, device, share) for device, share in enumerate(shares)]
        if all(replicas):
            yield "replicas", [each for each in replicas if each is not None], shares

    def _alone(self, load: str, device: int, size: int) -> Placed | None:
        for option in (UNIFORM[1], *UNIFORM[:1], *UNIFORM[2:]):
            whole = (self.case.layers,)
            placed = (
                self.case.place(whole, option, (device,), size)
                if load == "batch"
                else self.case.place_serving(whole, option, SERVING_BUDGETS[0], (device,))
            )
            if placed is not None:
                return placed
        return None

    def _rows_side_by_side(self, load: str, name: str, placed: list[Placed], shares: list[int]) -> None:
        starts = [sum(shares[:index]) for index in range(len(shares))]
        if load == "batch":
            jobs = [batch_job(share, start) for share, start in zip(shares, starts)]
        else:
            jobs = [trace_job(chosen) for chosen in dealt(shares)]
        self._add(load, name, placed, jobs)

    def _add(self, load: str, name: str, placed: Sequence[Placed], jobs: Sequence[dict[str, Any]]) -> None:
        if any((row["load"], row["row"]) == (load, name) for row in self.state["rows"]):
            return
        try:
            measured: Measured | str = self.made.measure(placed, jobs, REPEATS, ENOUGH_S)
        except EngineError as error:
            measured = str(error)
        simulated = self.case.simulated(load, placed[0]) if len(placed) == 1 else None
        self.state["rows"].append(as_row(load, name, placed, measured, simulated))
        self._say(f"{load} {name}", self.state["rows"][-1].get("median"))

    def _short(self, load: str, name: str, placed: Sequence[Placed], jobs: Sequence[dict[str, Any]]) -> float:
        """Tokens per second of one run; 0 where vLLM refused. What the JSON has is not measured again."""
        known = self.state["search"].setdefault(load, {})
        if name not in known:
            try:
                known[name] = self.made.measure(placed, jobs, 1, ENOUGH_S).median
            except EngineError as error:
                click.echo(f"{name}: {error}", err=True)
                known[name] = 0.0
            self._say(f"{load} search {name}", known[name])
        value: float = known[name]
        return value

    def _say(self, what: str, tokens_per_s: float | None) -> None:
        self.keep()
        click.echo(f"{self.case.name}: {what}: {'failed' if tokens_per_s is None else f'{tokens_per_s:.1f} tokens/s'}", err=True)


def merged(runs: Sequence[Measured]) -> Measured:
    """Runs of one configuration, each of an engine of its own."""
    return Measured(tuple(run for each in runs for run in each.runs), runs[0].kv_blocks, runs[0].load_s)


def as_row(load: str, name: str, placed: Sequence[Placed], measured: Measured | str, simulated: float | None) -> dict[str, Any]:
    """What the JSON has of a row; `error` instead of figures where vLLM refused. predicted: of the batch by the plan's own
    formula; simulated: of either load in vLLM's schedule."""
    row: dict[str, Any] = {
        "load": load,
        "row": name,
        "devices": [list(each.settings.devices) for each in placed],
        "partition": [list(each.partition) for each in placed],
        "options": placed[0].options,
        "model": placed[0].model,
        "max_num_seqs": [each.settings.max_num_seqs for each in placed],
        "max_num_batched_tokens": [each.settings.max_num_batched_tokens for each in placed],
        "sensitivity": placed[0].sensitivity,
        "predicted": placed[0].predicted_tokens_per_s if len(placed) == 1 else None,
        "simulated": None if simulated is None else round(simulated, 2),
        "kv_blocks_predicted": [each.settings.kv_blocks for each in placed],
    }
    if isinstance(measured, str):
        return row | {"error": measured}
    return row | {
        "tokens_per_s": [round(value, 2) for value in measured.tokens_per_s],
        "median": round(measured.median, 2),
        "kv_blocks": list(measured.kv_blocks),
        "load_s": measured.load_s,
        **({"parts": measured.runs[-1]["parts"]} if "parts" in measured.runs[-1] else {}),
        **{key: [round(run[key], 4) for run in measured.runs] for key in ("ttft_s", "tpot_s") if key in measured.runs[0]},
    }


def _text(lengths: Partition) -> str:
    return ",".join(map(str, lengths))
