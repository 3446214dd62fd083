"""VllmSettings: how vLLM is to be set so that it runs a plan, and what is predicted of it."""

from dataclasses import dataclass, field
from typing import Literal

from llmpq.costs.kv_blocks import KvBlocks, kv_blocks
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Device
from llmpq.hardware.devices import DeviceKind
from llmpq.plan import Plan
from llmpq.precision import CachePrecision
from llmpq.serialize import RARE

Executor = Literal["one process", "mp", "mp over hosts", "ray"]
VLLM_VERSION = "0.32"  # what the settings and the plugin were written for, and run with on CPU
PLUGIN_CLASS = "llmpq_vllm_plugin.Worker"
CACHE_DTYPES: dict[CachePrecision, str] = {"16": "auto", "int8": "int8_per_token_head", "fp8": "fp8"}
FREE_OF_CARD = 0.02  # assumed: what the driver and others hold of a card beside the reserve, as a share of it


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Of each rank, in order: `devices`, `hosts`, the `device_indexes` of its host's cards; of each stage: `partition` (layers).

    A stage has `tensor_parallel` ranks, which lie one behind the other.
    kv_cache_memory_bytes: the one figure that vLLM takes for all ranks; it makes `kv_blocks` on the rank with the most
    layers, and vLLM shrinks every other rank's cache to the same number, `rank_kv_bytes`.
    """

    vllm_version: str
    served_model_name: str
    kind: DeviceKind
    executor: Executor
    devices: tuple[str, ...]
    hosts: tuple[str, ...]
    device_indexes: tuple[int, ...]
    partition: tuple[int, ...]
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_blocks: int
    kv_blocks_needed: int
    kv_cache_memory_bytes: int
    rank_kv_bytes: tuple[int, ...]
    memory_utilization: float
    windowed: bool
    kv_cache_dtype: str = field(default="auto", metadata=RARE)
    tensor_parallel: int = field(default=1, metadata=RARE)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The hosts, in the order of their first stage."""
        return tuple(dict.fromkeys(self.hosts))

    @property
    def needs_plugin(self) -> bool:
        """Whether vLLM lacks something that the plugin module brings."""
        return self.kind == "cpu"


def vllm_settings(plan: Plan, graph: LayerGraph) -> VllmSettings:
    """A pure function of the plan. A step of vLLM is as large as the plan's: a prefill micro-batch or all sequences."""
    stages = tuple(plan.cluster.device(stage.device) for stage in plan.stages)
    devices = tuple(plan.cluster.device(name) for stage in stages for name in stage.members)
    workload, load, blocks = plan.batch, plan.prediction.load, kv_blocks(plan, graph)
    step = plan.pipeline.prefill_micro_batch * workload.prompt_len
    return VllmSettings(
        vllm_version=VLLM_VERSION,
        served_model_name=plan.model,
        kind=devices[0].type.kind,
        executor=_executor(devices),
        devices=tuple(device.name for device in devices),
        hosts=tuple(device.host for device in devices),
        device_indexes=tuple(_index_on_host(plan, device) for device in devices),
        partition=tuple(len(stage.layers) for stage in plan.stages),
        dtype=plan.compute_dtype,
        max_model_len=plan.workload.kv_len + 1,
        max_num_seqs=workload.batch_size if load is None else load.running,
        max_num_batched_tokens=max(step, workload.batch_size) if load is None else load.token_budget,
        block_size=blocks.block_size,
        kv_blocks=blocks.count,
        kv_blocks_needed=blocks.needed,
        kv_cache_memory_bytes=blocks.count * max(blocks.block_bytes),
        rank_kv_bytes=tuple(nbytes for stage, nbytes in zip(stages, blocks.rank_bytes) for _ in stage.members),
        memory_utilization=min(_utilization(device) for device in devices),
        windowed=any(kind.attention.window is not None for kind in graph.kinds),
        kv_cache_dtype=CACHE_DTYPES[plan.kv_precision],
        tensor_parallel=plan.ranks,
    )


def too_few_blocks(blocks: KvBlocks, max_model_len: int) -> bool:
    """Whether not even one sequence of that length fits: vLLM then refuses to start."""
    return blocks.tokens < max_model_len


def _executor(devices: tuple[Device, ...]) -> Executor:
    """vLLM's own processes where every host has as many ranks as the others and they are neighbours, else Ray."""
    runs: list[tuple[str, int]] = []
    for device in devices:
        if runs and runs[-1][0] == device.host:
            runs[-1] = (device.host, runs[-1][1] + 1)
        else:
            runs.append((device.host, 1))
    if len(runs) == 1:
        return "one process" if len(devices) == 1 else "mp"
    even = len({length for _, length in runs}) == 1 and len({host for host, _ in runs}) == len(runs)
    return "mp over hosts" if even else "ray"


def _index_on_host(plan: Plan, device: Device) -> int:
    """Its place among the devices of its host, in the order of the cluster."""
    return [other.name for other in plan.cluster.devices if other.host == device.host].index(device.name)


def _utilization(device: Device) -> float:
    """The share of the card that the plan counts on, rounded down to a hundredth."""
    share = min(device.capacity_bytes / device.type.memory_bytes, 1 - FREE_OF_CARD)
    return max(int(share * 100), 1) / 100
