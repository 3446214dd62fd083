"""KV blocks: how many blocks of the cache an engine with paged attention gets on a pipeline, the least over its ranks."""

from collections.abc import Iterable
from dataclasses import dataclass

from llmpq.costs.memory import paged_tokens
from llmpq.costs.shard import shard
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Device
from llmpq.plan import Plan

PAGED = ("vllm",)
BLOCK_SIZES = {"cuda": 16, "rocm": 16, "cpu": 32}  # tokens; vLLM's default on GPUs, the least that its CPU kernels like


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """Of `block_size` tokens each. `room`: blocks that the memory of each rank leaves; `block_bytes`: of one on each rank;
    `needed`: what the workload's sequences take at their longest, one block that the engine keeps to itself included.

    Every rank gets the same number, `count`: what the rank with the least room can hold (vLLM 0.32,
    v1/core/kv_cache_utils.get_kv_cache_configs), on CPUs at most what the workload needs: their memory is not the engine's alone.
    """

    block_size: int
    room: tuple[int, ...]
    block_bytes: tuple[int, ...]
    needed: int
    shared_memory: bool

    @property
    def count(self) -> int:
        least = min(self.room)
        return min(least, self.needed) if self.shared_memory else least

    @property
    def rank_bytes(self) -> tuple[int, ...]:
        """What the cache takes on each rank."""
        return tuple(self.count * nbytes for nbytes in self.block_bytes)

    @property
    def tightest(self) -> int:
        """The rank that decides."""
        return self.room.index(min(self.room))

    @property
    def tokens(self) -> int:
        """Tokens that fit at once."""
        return max(0, self.count - 1) * self.block_size


def kv_blocks(plan: Plan, graph: LayerGraph) -> KvBlocks:
    """What the plan's devices have left beside weights and activations, in blocks; of a group, what each of its ranks has."""
    graph = shard(graph, plan.ranks)
    devices = [plan.cluster.device(stage.device) for stage in plan.stages]
    block_size, cached = block_size_of(devices), graph.with_cache(plan.kv_precision)
    block_bytes = tuple(
        block_size * sum(cached.kind_of(layer).kv_bytes_per_token for layer in stage.layers) for stage in plan.stages
    )
    left = (memory.capacity - (memory.total - memory.kv_cache) for memory in plan.prediction.memory)
    return KvBlocks(
        block_size=block_size,
        room=tuple(max(0, nbytes // size) for nbytes, size in zip(left, block_bytes, strict=True)),
        block_bytes=block_bytes,
        needed=_needed(plan, block_size),
        shared_memory=any(device.type.kind == "cpu" for device in devices),
    )


def _needed(plan: Plan, block_size: int) -> int:
    load = plan.prediction.load
    if load is None:
        return paged_tokens(plan.batch, block_size) // block_size
    return -(-load.kv_blocks * load.block_size // block_size)


def block_size_of(devices: Iterable[Device]) -> int:
    """Tokens of a block on a pipeline of these devices."""
    return max(BLOCK_SIZES[device.type.kind] for device in devices)


def page_size(engine: str, devices: Iterable[Device]) -> int | None:
    """Tokens of a block where the engine's attention is paged, else None."""
    return block_size_of(devices) if engine in PAGED else None
