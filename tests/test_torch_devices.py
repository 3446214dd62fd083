"""Torch devices: stages of a plan on the accelerators of this machine."""

from dataclasses import replace

import pytest
import torch

from llmpq.hardware.cluster import Cluster
from llmpq.plan import Plan, Stage
from llmpq.runtime.torch_devices import torch_devices
from tests.toys import toy_plan


def plan_on(cluster: str, devices: tuple[str, ...]) -> Plan:
    plan = replace(toy_plan((2,) * len(devices)), cluster=Cluster.load(cluster))
    (pipeline,) = plan.pipelines
    stages = tuple(Stage(device, 2 * index, ("16", "16")) for index, device in enumerate(devices))
    return replace(plan, pipelines=(replace(pipeline, stages=stages),))


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_cards")
def test_cards_are_numbered_per_host_in_the_order_of_the_cluster() -> None:
    plan = plan_on("1xT4+1xL4,1xA100-40", ("L4:0", "T4:0", "A100-40:0"))
    assert torch_devices(plan) == (torch.device("cuda", 1), torch.device("cuda", 0), torch.device("cuda", 0))


@pytest.mark.usefixtures("two_cards")
def test_a_card_that_torch_does_not_see_and_a_cpu_run_on_the_cpu() -> None:
    plan = plan_on("3xT4,1xCPU", ("T4:1", "T4:2", "CPU:0"))
    assert torch_devices(plan) == (torch.device("cuda", 1), torch.device("cpu"), torch.device("cpu"))


def test_without_cuda_everything_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_devices(plan_on("2xT4", ("T4:0", "T4:1"))) == (torch.device("cpu"),) * 2
