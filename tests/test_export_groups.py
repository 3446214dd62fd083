"""Plans of tensor-parallel groups handed to engines: ranks, flags and files of vLLM; what others say to them."""

from dataclasses import replace

import pytest

from llmpq.export.target import TARGETS, find_target
from llmpq.export.vllm_launch import launch_script
from llmpq.export.vllm_settings import vllm_settings
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.serialize import dumps, loads
from tests.export_plans import TWO_CPUS, graph_of, modules_of, on
from tests.values import llama_kind

PAIRS = on("4xL4", ("L4:0+L4:1", "w4a16 16"), ("L4:2+L4:3", "w8a8"), dtype="bfloat16")
HOSTS = on("2xL4,2xL4", ("L4:2+L4:3", "16"), ("L4:0+L4:1", "16"), dtype="bfloat16")
QUAD = on("4xL4", ("L4:0+L4:1+L4:2+L4:3", "16"), dtype="bfloat16")
CPUS = on("2xCPU", ("CPU:0+CPU:1", "w4a16 16"), dtype="bfloat16")


def graph(plan: Plan, kv_heads: int = 4) -> LayerGraph:
    """A Llama whose heads four ranks can share, with as many layers as the plan."""
    kind = llama_kind(512, kv_heads=kv_heads, ffn=1024, head_dim=128)
    return replace(graph_of(plan), kinds=(kind,), hidden_size=512)


def launched(plan: Plan) -> str:
    return launch_script(vllm_settings(plan, graph(plan)))


def test_ranks_lie_one_behind_the_other_stage_by_stage() -> None:
    settings = vllm_settings(PAIRS, graph(PAIRS))
    assert settings.devices == ("L4:0", "L4:1", "L4:2", "L4:3")
    assert (settings.tensor_parallel, settings.partition, settings.device_indexes) == (2, (2, 1), (0, 1, 2, 3))
    assert settings.executor == "mp"
    block = 16 * graph(PAIRS).kinds[0].kv_bytes_per_token // 2
    assert settings.rank_kv_bytes == tuple(settings.kv_blocks * block * layers for layers in (2, 2, 1, 1))
    assert settings.kv_cache_memory_bytes == settings.kv_blocks * block * 2


def test_the_launch_script_has_both_sizes_and_the_order_of_the_cards() -> None:
    script = launched(PAIRS)
    for words in (
        "--tensor-parallel-size 2",
        "--pipeline-parallel-size 2",
        "--distributed-executor-backend mp",
        "CUDA_VISIBLE_DEVICES=0,1,2,3",
        "VLLM_PP_LAYER_PARTITION=2,1",
    ):
        assert words in script
    assert "tensor-parallel" not in launch_script(vllm_settings(TWO_CPUS, graph_of(TWO_CPUS)))


def test_one_group_is_no_pipeline_and_still_several_processes() -> None:
    script = launched(QUAD)
    assert "--tensor-parallel-size 4" in script and "--distributed-executor-backend mp" in script
    assert "pipeline-parallel" not in script and "VLLM_PP_LAYER_PARTITION" not in script


def test_groups_of_two_hosts_are_nodes_of_as_many_ranks() -> None:
    settings, script = vllm_settings(HOSTS, graph(HOSTS)), launched(HOSTS)
    assert (settings.executor, settings.nodes) == ("mp over hosts", ("host1", "host0"))
    assert "--nnodes 2" in script and "0) echo 0,1;; 1) echo 0,1;;" in script


def test_threads_of_cpus_are_shared_among_all_ranks() -> None:
    assert "$(nproc) / 2" in launched(CPUS)


def test_settings_of_groups_are_read_back() -> None:
    settings = vllm_settings(PAIRS, graph(PAIRS))
    assert loads(type(settings), dumps(settings)) == settings
    assert "tensor_parallel" not in dumps(vllm_settings(TWO_CPUS, graph_of(TWO_CPUS)))


def test_the_readme_names_the_groups() -> None:
    files = find_target("vllm").files(PAIRS, graph(PAIRS), modules_of(PAIRS))
    assert "| 0 | L4:0+L4:1 (host host0) |" in files["README.md"]
    assert "tensor-parallel group of 2 devices" in files["README.md"]


@pytest.mark.parametrize("plan", (PAIRS, HOSTS, QUAD, CPUS), ids=("pairs", "hosts", "quad", "cpus"))
def test_vllm_runs_groups_whose_parts_its_kernels_take(plan: Plan) -> None:
    assert find_target("vllm").unsupported(plan, graph(plan)) == []


def test_vllm_refuses_heads_that_do_not_divide_and_sizes_that_differ() -> None:
    assert "both must be multiples of 2" in find_target("vllm").unsupported(PAIRS, graph(PAIRS, kv_heads=1))[0]
    mixed = on("3xL4", ("L4:0+L4:1", "16"), ("L4:2", "16"), dtype="bfloat16")
    assert "stages have 1 and 2 ranks" in find_target("vllm").unsupported(mixed, graph(mixed))[0]


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "vllm"])
def test_engines_without_groups_say_so(name: str) -> None:
    reasons = find_target(name).unsupported(QUAD, graph(QUAD))
    assert any("tensor-parallel groups, as L4:0+L4:1+L4:2+L4:3; only vLLM has them" in reason for reason in reasons)
