"""DeviceMapTarget: the stages of a plan as a device map for accelerate and transformers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from llmpq.graph import LayerGraph
from llmpq.plan import Plan

DEVICE_MAP_FILE = "device_map.json"


@dataclass(frozen=True, slots=True)
class DeviceMapTarget:
    name: ClassVar[str] = "device-map"
    with_weights: ClassVar[bool] = False
    marker: ClassVar[str] = DEVICE_MAP_FILE

    def unsupported(self, plan: Plan, graph: LayerGraph) -> list[str]:
        return one_host(plan)

    def files(self, plan: Plan, graph: LayerGraph, modules: Mapping[str, int]) -> dict[str, str]:
        return {DEVICE_MAP_FILE: json.dumps(device_map(plan, modules), indent=2) + "\n"}


def device_map(plan: Plan, modules: Mapping[str, int]) -> dict[str, int | str]:
    """Module -> index of an accelerator, in the order of the cluster, or "cpu"."""
    places = [_place(plan, stage.device) for stage in plan.stages]
    return {module: places[stage] for module, stage in modules.items()}


def one_host(plan: Plan) -> list[str]:
    """A reason when the stages are not all on one host, where one process could reach them, or are groups of devices."""
    if plan.ranks > 1:
        return [f"stages are tensor-parallel groups, as {plan.stages[0].device}; only vLLM has them: --tensor-parallel 1"]
    hosts = sorted({plan.cluster.device(stage.device).host for stage in plan.stages})
    return [] if len(hosts) == 1 else [f"the stages are on hosts {', '.join(hosts)}; a device map is for one process on one host"]


def _place(plan: Plan, name: str) -> int | str:
    device = plan.cluster.device(name)
    if device.type.kind == "cpu":
        return "cpu"
    return [other.name for other in plan.cluster.devices if other.host == device.host].index(device.name)
