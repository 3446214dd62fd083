"""What an engine cannot use is kept out of the plan, and said."""

from dataclasses import replace

import pytest

from llmpq.errors import InfeasibleError
from llmpq.graph import Linear
from llmpq.hardware.cluster import Cluster
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.planning.engine_limits import engine_limits, without_devices
from llmpq.precision import parse_precisions
from llmpq.program import Program
from tests.values import llama_graph, llama_kind, program

ALL = parse_precisions("16,w8a8,w8a16,w4a16")


def limits(cluster: str, engine: str = "vllm", ffn: int = 256) -> tuple[list[str], tuple[str, ...]]:
    graph = replace(llama_graph(), kinds=(llama_kind(ffn=ffn),))
    found = engine_limits(graph, Cluster.load(cluster), ALL, engine)
    return [device.name for device in found.usable], found.notices


def test_cards_below_sm75_are_left_out_of_a_plan_for_vllm_and_the_reason_is_told() -> None:
    usable, notices = limits("4xT4,2xV100-32")
    assert usable == ["T4:0", "T4:1", "T4:2", "T4:3"]
    (notice,) = notices
    assert notice.startswith("V100-32:0, V100-32:1 cannot be used by vllm: no attention backend for this card; use llama.cpp")
    assert "[vLLM 0.32" in notice


def test_one_instance_of_vllm_runs_one_kind_of_device() -> None:
    assert limits("1xL4,2xCPU") == (
        ["L4:0"],
        ("CPU:0, CPU:1 cannot be used beside L4:0: one vllm runs one kind of device (cuda)",),
    )
    assert limits("1xL4,2xCPU", "local")[0] == ["L4:0", "CPU:0", "CPU:1"]


def test_a_precision_that_one_device_lacks_is_told() -> None:
    usable, notices = limits("1xB200,1xL4")
    assert usable == ["B200:0", "L4:0"]
    assert [notice.split(":")[0] for notice in notices] == ["B200"]
    assert "cannot run w8a8 on vllm: no int8 products on Blackwell" in notices[0]


def test_a_size_that_a_kernel_does_not_take_leaves_the_precision_out() -> None:
    _, notices = limits("2xCPU", ffn=100)
    assert len(notices) == 1 and "CPU:0, CPU:1 cannot run w4a16 on vllm: mlp.gate_proj has 200 rows" in notices[0]


def test_a_cluster_that_the_engine_cannot_use_at_all_is_infeasible_with_the_reason() -> None:
    with pytest.raises(InfeasibleError, match="V100-32:0 cannot be used by vllm: no attention backend"):
        limits("1xV100-32")


def test_experts_in_one_tensor_are_infeasible_on_vllm_with_the_remedy() -> None:
    kind = llama_kind()
    experts = Linear("mlp.experts.gate_up_proj", 128, 512, False, "mlp", "experts", experts=4, active_experts=2)
    graph = replace(llama_graph(), kinds=(replace(kind, linears=(*kind.linears, experts)),))
    with pytest.raises(InfeasibleError, match=r"experts stored as one tensor.*use --engine local"):
        engine_limits(graph, Cluster.load("1xL4"), ALL, "vllm")


def planned(cluster: str) -> Program:
    start = program(cluster=Cluster.load(cluster))
    start = replace(start, request=replace(start.request, engine="vllm"))
    return run_passes(start, parse_pipeline("derive-costs,estimate-sensitivity{indicator=prior},assign-joint"))


def test_the_dtype_of_a_plan_is_that_of_the_devices_it_may_use() -> None:
    assert planned("1xA100-40,1xV100-32").require("plan").compute_dtype == "bfloat16"
    assert planned("1xA100-40,1xT4").require("plan").compute_dtype == "float16"


def test_masked_devices_get_no_layers_and_keep_their_place_in_the_tables() -> None:
    done = planned("1xL4,1xV100-32")
    assert {stage.device for stage in done.require("plan").stages} == {"L4:0"}
    costs = without_devices(done.require("costs"), ())
    assert costs.devices == ("L4:0", "V100-32:0")
    cells = [cell for phase in (*costs.prefill, *costs.decode) for kinds in phase.layer_s for row in kinds for cell in row]
    assert cells and set(cells) == {None}
