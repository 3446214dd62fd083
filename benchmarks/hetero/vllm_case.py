"""Case: a cluster with its model, its loads and everything that is known before anything is measured on it."""

import random
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from hetero.hand import Partition, partitions
from hetero.placing import Placed, by_hand, even_partition, for_requests
from hetero.prepared import Prepared

from llmpq.compiled import load as load_compiled
from llmpq.compiler import compile, prepare
from llmpq.costs import PhaseCosts
from llmpq.errors import InfeasibleError
from llmpq.export.vllm import SETTINGS_FILE
from llmpq.export.vllm_settings import VllmSettings
from llmpq.hardware.cluster import Cluster
from llmpq.program import Program
from llmpq.serialize import loads
from llmpq.simulation.requests import Request, read_trace
from llmpq.simulation.trace_workload import serving_of
from llmpq.workload import Batch, Workload

CLUSTERS = Path(__file__).parent / "clusters"
TRACE = Path(__file__).parent.parent / "data" / "traces" / "conversation.csv"
UNIFORM = ("16", "w8a8", "w4a16")  # of everybody; w8a16 dequantizes a weight for every product on CPUs
PRECISIONS = ",".join(UNIFORM)
BATCH = Batch(16, 64, 24)
AT_ONCE = (16, 8, 6, 4)  # sequences of the batch in the cache at once that a human tries; vLLM queues the others
PREFILLED = (1, 2, 4, 8)  # prompts of a step that a human tries for the best partition
SERVED = 32  # requests of the trace
PROMPT_SCALE, ANSWER_SCALE, LONGEST_PROMPT, LONGEST_ANSWER = 16, 8, 64, 24  # lengths are divided and cut: the model is small
SECONDS = 2.5  # in which all requests arrive, faster than any configuration serves them
SERVING_BUDGETS = (128, 64)  # tokens of a step that a human tries; 512 lost on every cluster where it was tried
VOCABULARY = 2048


@dataclass(frozen=True, slots=True)
class Inputs(Prepared):
    """What `prepare` made: beside model, sensitivity and a profile in vLLM, the model's checkpoints at one precision."""

    def uniform(self, option: str) -> Path:
        return self.folder / f"uniform-{option}"


@dataclass(frozen=True)
class Case:
    name: str
    inputs: Inputs
    programs: dict[Workload, Program] = field(default_factory=dict)

    @cached_property
    def cluster(self) -> Cluster:
        return Cluster.load(CLUSTERS / f"{self.name}.yaml")

    @cached_property
    def as_measured(self) -> Cluster:
        return self.inputs.as_measured(self.cluster)

    @property
    def has_slow_link(self) -> bool:
        return self.name == "slow-link"

    @cached_property
    def program(self) -> Program:
        """The batch, with costs and sensitivity."""
        return self._program(BATCH)

    @property
    def speeds(self) -> tuple[float, ...]:
        return tuple(device.speed for device in self.as_measured.devices)

    def options(self) -> dict[str, Any]:
        return {
            "engine": "vllm",
            "precisions": PRECISIONS,
            "sensitivity": self.inputs.sensitivity,
            "profile": self.inputs.profile if self.inputs.profile.exists() else None,
        }

    def place(
        self,
        partition: Partition,
        option: str,
        devices: tuple[int, ...] | None = None,
        size: int = 16,
        prefilled: int | None = None,
    ) -> Placed | None:
        """By hand, for a batch of `size`: the most of it at once that has cache, in steps that fill the pipeline, or of so many
        prompts."""
        used = tuple(range(len(partition))) if devices is None else devices
        for sequences in (size, *(each for each in AT_ONCE if each < size)):
            micro = ceil(sequences / len(used))
            asked = self._program(Batch(sequences, BATCH.prompt_len, BATCH.gen_len))
            sizes = _sizes(asked, min(micro, prefilled or micro), micro)
            placed = by_hand(asked, str(self.inputs.uniform(option)), used, partition, option, sizes)
            if placed is not None:
                assert placed.predicted_tokens_per_s is not None
                whole = ceil(size / sequences) * sequences  # as many as all rounds have room for
                return replace(placed, predicted_tokens_per_s=placed.predicted_tokens_per_s * size / whole)
        return None

    def place_serving(
        self, partition: Partition, option: str, token_budget: int, devices: tuple[int, ...] | None = None
    ) -> Placed | None:
        """By hand, for the trace, in steps of so many tokens."""
        used = tuple(range(len(partition))) if devices is None else devices
        asked = self._program(Batch(SERVED, BATCH.prompt_len, BATCH.gen_len))
        sizes = _sizes(asked, token_budget // BATCH.prompt_len, token_budget // BATCH.prompt_len)
        return for_requests(asked, str(self.inputs.uniform(option)), used, partition, option, sizes)

    def possible(self, option: str) -> dict[Partition, Placed]:
        """Every partition over all devices in which at least one sequence fits."""
        every = ((lengths, self.place(lengths, option)) for lengths in partitions(self.layers, len(self.cluster.devices)))
        return {lengths: placed for lengths, placed in every if placed is not None}

    @property
    def layers(self) -> int:
        return self.program.graph.num_layers

    @property
    def even(self) -> Partition:
        return even_partition(self.layers, len(self.cluster.devices))

    def uniform_loss(self, option: str) -> float:
        loss: float = self.program.require("sensitivity").total((option,) * self.layers)
        return loss

    def planned(self, load: str, option: str) -> Path:
        """Where llmpq's output for this load, within the loss of that uniform precision, is or will be."""
        return self.inputs.folder / "planned" / self.name / f"{load}-{option}"

    def compile(self, load: str, option: str) -> None:
        """llmpq's plan within the loss of a uniform precision, quantized and exported; none where nothing fits."""
        out, budget = self.planned(load, option), self.uniform_loss(option) * (1 + 1e-9)
        options = {**self.options(), "sensitivity_budget": budget, "queue": True, "quantizer": "rtn", "quality_check": False}
        with suppress(InfeasibleError):
            compiled = compile(self.inputs.model, self.as_measured, workload(load), out=out / "out", **options)
            compiled.export(out / "export", to="vllm", link=True)

    def planned_placement(self, load: str, option: str) -> Placed | None:
        """llmpq's plan as exported, made where it is not there yet; None where nothing fits."""
        out = self.planned(load, option)
        if not out.exists():
            self.compile(load, option)
        if not (out / "export" / SETTINGS_FILE).exists():
            return None
        settings = loads(VllmSettings, (out / "export" / SETTINGS_FILE).read_text("utf-8"), SETTINGS_FILE)
        made = load_compiled(out / "out").plan
        return Placed(str(out / "export" / "model"), settings, made, made.tokens_per_s if load == "batch" else None)

    def simulated(self, load: str, placed: Placed) -> float:
        """Tokens per second of the whole load in vLLM's schedule by our costs."""
        batch = tuple(Request(0.0, BATCH.prompt_len, BATCH.gen_len) for _ in range(BATCH.batch_size))
        return placed.simulated(batch if load == "batch" else requests(), self.program)

    def _program(self, asked: Workload) -> Program:
        if asked not in self.programs:
            self.programs[asked] = prepare(self.inputs.model, self.as_measured, asked, **self.options())
        return self.programs[asked]


def _sizes(program: Program, prefill: int, decode: int) -> tuple[int, int]:
    """Sequences of a step of prefill and of decode: the nearest that have costs."""
    costs = program.require("costs")

    def nearest(phases: tuple[PhaseCosts, ...], wanted: int) -> int:
        return min((each.micro_batch for each in phases), key=lambda size: (abs(size - wanted), size))

    return nearest(costs.prefill, prefill), nearest(costs.decode, decode)


def requests() -> tuple[Request, ...]:
    """The first requests of the trace, scaled to the model and sped up."""
    read = read_trace(TRACE, SERVED)
    factor = SECONDS / read[-1].arrival_s
    return tuple(
        Request(
            each.arrival_s * factor,
            min(LONGEST_PROMPT, max(4, each.prompt_len // PROMPT_SCALE)),
            min(LONGEST_ANSWER, max(4, each.gen_len // ANSWER_SCALE)),
        )
        for each in read
    )


def workload(load: str) -> Workload:
    return BATCH if load == "batch" else serving_of(requests())


def batch_job(sequences: int, first: int = 0) -> dict[str, Any]:
    """Random prompts; `first`: those before it are another engine's."""
    prompts = [_prompt(index, BATCH.prompt_len) for index in range(first, first + sequences)]
    return {"kind": "batch", "prompts": prompts, "gen_len": BATCH.gen_len}


def trace_job(chosen: tuple[int, ...] | None = None) -> dict[str, Any]:
    """The requests, or those of these numbers."""
    asked = requests()
    kept = range(len(asked)) if chosen is None else chosen
    made = [
        {"arrival_s": asked[i].arrival_s, "prompt": _prompt(i, asked[i].prompt_len), "gen_len": asked[i].gen_len} for i in kept
    ]
    return {"kind": "trace", "requests": made}


def _prompt(index: int, length: int) -> list[int]:
    draw = random.Random(index)
    return [draw.randrange(1, VOCABULARY) for _ in range(length)]
