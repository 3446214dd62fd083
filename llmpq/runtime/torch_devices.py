"""Torch devices: where on this machine each stage of a plan runs."""

import torch

from llmpq.plan import Plan


def torch_devices(plan: Plan) -> tuple[torch.device, ...]:
    """Per stage: `cuda:k` for the k-th accelerator of its host in the cluster, where torch sees that many; else the CPU.

    So a plan for cards that are not here still runs, on the CPU. ROCm builds of torch call their devices cuda too. The stage of
    a tensor-parallel group runs whole on its first device: this runtime splits no layer.
    """
    return tuple(_torch_device(plan, stage.device) for stage in plan.stages)


def _torch_device(plan: Plan, name: str) -> torch.device:
    device = plan.cluster.device(plan.cluster.device(name).members[0])
    if device.type.kind == "cpu":
        return torch.device("cpu")
    beside = [other.name for other in plan.cluster.devices if other.host == device.host and other.type.kind != "cpu"]
    index = beside.index(device.name)
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", index) if index < visible else torch.device("cpu")
