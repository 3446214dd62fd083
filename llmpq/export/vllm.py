"""VllmTarget: a compiled model as vLLM serves it: weights, launch script, settings, plugin."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import ClassVar

from llmpq.costs.kv_blocks import kv_blocks
from llmpq.costs.shard import shard, unsplittable
from llmpq.export.vllm_launch import launch_script
from llmpq.export.vllm_readme import readme
from llmpq.export.vllm_settings import too_few_blocks, vllm_settings
from llmpq.graph import LayerGraph
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.layer_option import parse_option
from llmpq.plan import Plan
from llmpq.serialize import dumps

SETTINGS_FILE = "vllm.json"
LAUNCH_FILE = "launch.sh"
PLUGIN_FILE = "llmpq_vllm_plugin.py"


@dataclass(frozen=True, slots=True)
class VllmTarget:
    name: ClassVar[str] = "vllm"
    with_weights: ClassVar[bool] = True
    marker: ClassVar[str] = SETTINGS_FILE

    def unsupported(self, plan: Plan, graph: LayerGraph) -> list[str]:
        """Kernels that a stage's device lacks, devices that one vLLM does not mix, a cache too small for one sequence."""
        groups = _groups(plan, graph)
        return groups or [*_kernels(plan, graph), *_devices(plan), *_cache(plan, graph)]

    def files(self, plan: Plan, graph: LayerGraph, modules: Mapping[str, int]) -> dict[str, str]:
        settings = vllm_settings(plan, graph)
        written = {
            SETTINGS_FILE: dumps(settings),
            LAUNCH_FILE: launch_script(settings),
            "README.md": readme(plan, settings, kv_blocks(plan, graph)),
        }
        if settings.needs_plugin:
            written[PLUGIN_FILE] = files("llmpq.backends").joinpath("vllm_plugin.py").read_text(encoding="utf-8")
        return written


def _groups(plan: Plan, graph: LayerGraph) -> list[str]:
    """What stands against the plan's tensor-parallel groups."""
    sizes = {plan.cluster.device(stage.device).ranks for stage in plan.stages}
    if len(sizes) > 1:
        return [f"stages have {' and '.join(map(str, sorted(sizes)))} ranks; vLLM has one --tensor-parallel-size for all"]
    why = None if plan.ranks == 1 else unsplittable(graph, plan.ranks)
    return [] if why is None else [why]


def _kernels(plan: Plan, graph: LayerGraph) -> list[str]:
    """One reason per device and precision: the first layer that it cannot run."""
    found: dict[tuple[str, str], str] = {}
    graph = shard(graph, plan.ranks)
    for stage in plan.stages:
        device = plan.cluster.device(stage.device)
        for layer, option in zip(stage.layers, stage.options):
            answer = layer_support("vllm", device.type, parse_option(option), graph.kind_of(layer))
            if answer.level == "unsupported":
                why = f"{stage.device} cannot run layer {layer} at {option}: {answer.reason} [{answer.source}]"
                found.setdefault((stage.device, option), why)
    experts = any(linear.experts > 1 for kind in graph.kinds for linear in kind.linears)
    return [*found.values(), *(["experts are stored as one tensor, which vLLM was not seen to load"] if experts else [])]


def _devices(plan: Plan) -> list[str]:
    devices = [plan.cluster.device(stage.device) for stage in plan.stages]
    kinds = sorted({device.type.kind for device in devices})
    hosts = sorted({device.host for device in devices})
    found = []
    if len(kinds) > 1:
        found.append(f"the stages run on {' and '.join(kinds)}; one vLLM runs one kind of device; plan with --engine vllm")
    if "cpu" in kinds and len(hosts) > 1:
        found.append(f"the stages are CPUs of hosts {', '.join(hosts)}; vLLM on CPU runs on one host (it has no Ray there)")
    if plan.compute_dtype == "bfloat16" and not all(device.type.supports_bf16 for device in devices):
        found.append("a stage's device has no bfloat16, which all ranks share; plan with --engine vllm")
    return found


def _cache(plan: Plan, graph: LayerGraph) -> list[str]:
    blocks, length = kv_blocks(plan, graph), vllm_settings(plan, graph).max_model_len
    if not too_few_blocks(blocks, length):
        return []
    tightest = plan.stages[blocks.tightest].device
    return [
        f"{tightest} leaves room for {blocks.count} KV blocks of {blocks.block_size} tokens, "
        f"too few for one sequence of {length}; plan with --engine vllm"
    ]
