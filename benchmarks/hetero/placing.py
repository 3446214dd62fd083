"""Placing by hand: a partition and one precision for all layers, as the settings of vLLM that llmpq would write for them."""

from dataclasses import dataclass, replace
from typing import Any

from llmpq.costs.kv_blocks import kv_blocks
from llmpq.export.vllm_settings import VllmSettings, too_few_blocks, vllm_settings
from llmpq.plan import Optimality, Plan
from llmpq.planning.candidates import Candidate, build_problem
from llmpq.planning.make_plan import make_plan
from llmpq.program import Program
from llmpq.simulation.planned import StageTimes
from llmpq.simulation.requests import Request
from llmpq.simulation.scheduler import Policy
from llmpq.simulation.simulator import simulate
from llmpq.solver.problem import Assignment, evaluate

BY_HAND = Optimality(0.0, None, False, "by hand")
BLOCKS_EACH = 3  # of cache, that a request of the trace holds on average
Partition = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placed:
    """A configuration of vLLM. `model`: the checkpoint's directory; `settings`: of one engine, its devices in order;
    `plan`: what it is taken to be by our costs; predicted_tokens_per_s: of the batch, None for requests."""

    model: str
    settings: VllmSettings
    plan: Plan
    predicted_tokens_per_s: float | None

    @property
    def options(self) -> tuple[str, ...]:
        return self.plan.options

    @property
    def sensitivity(self) -> float:
        """Nats per token."""
        return self.plan.quality.sensitivity

    @property
    def partition(self) -> Partition:
        return self.settings.partition

    def simulated(self, requests: tuple[Request, ...], program: Program) -> float:
        """Tokens per second of these requests, by vLLM's scheduling policy and our costs of every step."""
        settings = self.settings
        policy = Policy(settings.max_num_seqs, settings.max_num_batched_tokens, settings.kv_blocks - 1, settings.block_size)
        times = StageTimes(self.plan, program.graph, "vllm", program.request.profile)
        return simulate(requests, policy, len(self.partition), times.stage_s(), times.link_s, overlap=False).tokens_per_s

    def engine(self) -> dict[str, Any]:
        """What the engine host is asked for."""
        names = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes")
        settings = {name: getattr(self.settings, name) for name in names}
        return {"model": self.model, "partition": list(self.partition), **settings}


def by_hand(
    program: Program, model: str, devices: tuple[int, ...], partition: Partition, option: str, micro_batches: tuple[int, int]
) -> Placed | None:
    """The program's batch with `partition` layers on each of `devices`, all at `option`; None where the cache of it does not
    fit. micro_batches: sequences of a step of prefill and of decode."""
    plan = _plan(program, devices, partition, option, micro_batches)
    if plan is None:
        return None
    settings = vllm_settings(plan, program.graph)
    if settings.kv_blocks < settings.kv_blocks_needed:
        return None
    return Placed(model, settings, plan, plan.tokens_per_s)


def for_requests(
    program: Program, model: str, devices: tuple[int, ...], partition: Partition, option: str, micro_batches: tuple[int, int]
) -> Placed | None:
    """The same for requests of all lengths up to the batch's: whatever cache there is, for as many sequences as it holds at
    `BLOCKS_EACH`; None where not one fits at its longest."""
    plan = _plan(program, devices, partition, option, micro_batches)
    if plan is None:
        return None
    settings, blocks = vllm_settings(plan, program.graph), kv_blocks(plan, program.graph)
    if too_few_blocks(blocks, settings.max_model_len):
        return None
    running = min(settings.max_num_seqs, max(1, (blocks.count - 1) // BLOCKS_EACH))
    return Placed(model, replace(settings, max_num_seqs=running), plan, None)


def _plan(
    program: Program, devices: tuple[int, ...], partition: Partition, option: str, micro_batches: tuple[int, int]
) -> Plan | None:
    candidate = Candidate(devices, *micro_batches)
    problem = build_problem(program, candidate, None)
    owner = tuple(stage for stage, length in enumerate(partition) for _ in range(length))
    assignment = Assignment(owner, (program.require("costs").options.index(option),) * len(owner))
    if evaluate(problem, assignment).objective == float("inf"):
        return None
    return make_plan(program, candidate, problem, assignment, BY_HAND, None)


def even_partition(layers: int, stages: int) -> Partition:
    """vLLM's own: equal shares, what is left over one each from the last but one stage backwards."""
    share, left = divmod(layers, stages)
    return tuple(share + (1 <= stages - 1 - stage <= left) for stage in range(stages)) if stages > 1 else (layers,)
