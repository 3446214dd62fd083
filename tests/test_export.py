"""Exports: the files for every engine, compared with golden ones, and what is refused with its reason."""

import json
import os
import subprocess
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from llmpq.errors import BackendError, InputError
from llmpq.export.llama_cpp import launch_script, quantize_script
from llmpq.export.target import TARGETS, find_target, write_export
from llmpq.export.vllm_settings import VllmSettings, vllm_settings
from llmpq.plan import Plan
from llmpq.serialize import dumps, loads
from llmpq.workload import Batch
from tests.conftest import Golden
from tests.export_plans import EVEN_HOSTS, FOUR_T4, OLD_CARDS, TWO_CPUS, UNEVEN_HOSTS, graph_of, modules_of, on

ONE_L4 = on("1xL4", ("L4:0", "w8a8 w4a16"), dtype="bfloat16")
CASES = {
    "vllm-two-cpus": ("vllm", TWO_CPUS),
    "vllm-one-l4": ("vllm", ONE_L4),
    "vllm-three-of-four-t4": ("vllm", FOUR_T4),
    "vllm-even-hosts": ("vllm", EVEN_HOSTS),
    "vllm-uneven-hosts": ("vllm", UNEVEN_HOSTS),
    "transformers": ("transformers", FOUR_T4),
    "llama.cpp-old-cards": ("llama.cpp", OLD_CARDS),
}


def files(engine: str, plan: Plan, window: int | None = None) -> dict[str, str]:
    return find_target(engine).files(plan, graph_of(plan, window), modules_of(plan))


def reasons(engine: str, plan: Plan) -> list[str]:
    return find_target(engine).unsupported(plan, graph_of(plan))


@pytest.mark.parametrize("name", CASES)
def test_an_export_is_its_golden_files(name: str, golden: Golden) -> None:
    engine, plan = CASES[name]
    assert reasons(engine, plan) == []
    texts = {file: text for file, text in files(engine, plan).items() if not file.endswith(".py")}
    golden(f"export-{name}.txt", "\n".join(f"==== {file}\n{text}" for file, text in sorted(texts.items())))


@pytest.mark.parametrize("engine", TARGETS)
def test_every_target_writes_its_marker_and_has_its_name(engine: str) -> None:
    target = find_target(engine)
    assert target.name == engine
    assert target.marker in files(engine, on("2xL4", ("L4:0", "16 w4a16"), ("L4:1", "w8a16"), dtype="bfloat16"))


def test_an_unknown_target_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"--to 'vlm' is unknown; known are vllm, .*; did you mean 'vllm'"):
        find_target("vlm")


@pytest.mark.parametrize("name", [name for name, (engine, _) in CASES.items() if engine != "transformers"])
def test_scripts_are_bash(name: str, tmp_path: Path) -> None:
    for file, text in files(*CASES[name]).items():
        if file.endswith(".sh"):
            (tmp_path / file).write_text(text)
            subprocess.run(["bash", "-n", str(tmp_path / file)], check=True)


def launched(plan: Plan, tmp_path: Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """Arguments and environment with which the launch script starts Python."""
    (tmp_path / "launch.sh").write_text(files("vllm", plan)["launch.sh"])
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\necho ====\nenv\n')
    python.chmod(0o755)
    command = ["bash", str(tmp_path / "launch.sh"), "--port", "8123"]
    clean = {"PATH": os.environ["PATH"], "PYTHON": str(python), **environment}
    said = subprocess.run(command, env=clean, capture_output=True, text=True, check=True).stdout
    arguments, _, variables = said.partition("====\n")
    return arguments.split("\n")[:-1], dict(line.split("=", 1) for line in variables.splitlines() if "=" in line)


def test_the_launch_script_starts_vllm_with_the_settings_and_hands_options_on(tmp_path: Path) -> None:
    arguments, variables = launched(TWO_CPUS, tmp_path)
    assert arguments[:4] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "model"]
    assert arguments[-2:] == ["--port", "8123"]
    assert arguments[arguments.index("--worker-cls") + 1] == "llmpq_vllm_plugin.Worker"
    assert variables["VLLM_PP_LAYER_PARTITION"] == "3,1"
    assert variables["PYTHONPATH"] == str(tmp_path)
    assert int(variables["OMP_NUM_THREADS"]) >= 1
    assert "CUDA_VISIBLE_DEVICES" not in variables


def test_cards_are_taken_in_the_order_of_the_stages(tmp_path: Path) -> None:
    arguments, variables = launched(FOUR_T4, tmp_path)
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,0,3"
    assert variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert arguments[arguments.index("--dtype") + 1] == "float16"
    assert "--worker-cls" not in arguments and "--enforce-eager" not in arguments


@pytest.mark.parametrize(("rank", "cards"), [("0", "0,1"), ("1", "1,0")])
def test_every_host_of_an_even_pipeline_starts_its_own_ranks(rank: str, cards: str, tmp_path: Path) -> None:
    arguments, variables = launched(EVEN_HOSTS, tmp_path, NODE_RANK=rank, MASTER_ADDR="10.0.0.1")
    assert variables["CUDA_VISIBLE_DEVICES"] == cards
    assert arguments[arguments.index("--nnodes") :][:6] == ["--nnodes", "2", "--node-rank", rank, "--master-addr", "10.0.0.1"]
    assert ("--headless" in arguments) == (rank != "0")


def test_a_rank_without_its_number_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        launched(EVEN_HOSTS, tmp_path)
    assert "NODE_RANK" in failed.value.stderr


def test_settings_follow_the_plan() -> None:
    settings = vllm_settings(FOUR_T4, graph_of(FOUR_T4))
    assert (settings.partition, settings.executor, settings.dtype) == ((2, 1, 2), "mp", "float16")
    assert (settings.max_num_seqs, settings.max_model_len, settings.max_num_batched_tokens) == (4, 33, 2 * 24)
    assert loads(VllmSettings, dumps(settings), "vllm.json") == settings


def test_one_figure_for_all_ranks_makes_the_predicted_blocks_on_the_longest() -> None:
    settings = vllm_settings(FOUR_T4, graph_of(FOUR_T4))
    block_bytes = [layers * settings.block_size * 2 * 64 * 2 for layers in settings.partition]
    assert min(settings.kv_cache_memory_bytes // nbytes for nbytes in block_bytes) == settings.kv_blocks
    assert settings.rank_kv_bytes == tuple(settings.kv_blocks * nbytes for nbytes in block_bytes)


def test_a_sliding_window_is_cached_in_full_so_that_the_count_holds() -> None:
    assert "--disable-hybrid-kv-cache-manager" in files("vllm", ONE_L4, window=16)["launch.sh"]
    assert "--disable-hybrid-kv-cache-manager" not in files("vllm", ONE_L4)["launch.sh"]


@pytest.mark.parametrize(
    ("engine", "plan", "reason"),
    [
        ("vllm", OLD_CARDS, "V100-32:1 cannot run layer 0 at 16: no attention backend for this card"),
        ("vllm", on("1xL4+1xCPU", ("L4:0", "16"), ("CPU:0", "16")), "one vLLM runs one kind of device"),
        ("vllm", on("1xCPU,1xCPU", ("CPU:0", "16"), ("CPU:1", "16")), "vLLM on CPU runs on one host"),
        ("vllm", on("1xT4", ("T4:0", "16"), dtype="bfloat16"), "no bfloat16, which all ranks share"),
        ("vllm", on("1xL4", ("L4:0", "16"), left=4096), "L4:0 leaves room for 1 KV blocks of 16 tokens, too few"),
        ("transformers", UNEVEN_HOSTS, "the stages are on hosts"),
        ("device-map", UNEVEN_HOSTS, "a device map is for one process on one host"),
        ("llama.cpp", TWO_CPUS, "layer 3 is w8a8: no ggml type holds these weights"),
        ("llama.cpp", EVEN_HOSTS, "the stages are on hosts"),
    ],
)
def test_what_an_engine_cannot_run_is_refused_with_the_reason(engine: str, plan: Plan, reason: str) -> None:
    assert any(reason in found for found in reasons(engine, plan)), reasons(engine, plan)


def test_a_refusal_writes_nothing(tmp_path: Path) -> None:
    target, plan = find_target("vllm"), OLD_CARDS
    with pytest.raises(BackendError, match="vllm cannot run this plan: V100-32:1"):
        write_export(target, plan, graph_of(plan), modules_of(plan), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_module_has_its_device_in_the_map() -> None:
    placed = json.loads(files("device-map", FOUR_T4)["device_map.json"])
    assert placed["model.embed_tokens"] == placed["model.layers.0"] == placed["model.layers.1"] == 2
    assert placed["model.layers.2"] == 0
    assert placed["model.layers.4"] == placed["model.norm"] == placed["lm_head"] == 3
    assert set(placed) == set(modules_of(FOUR_T4))
    assert set(json.loads(files("device-map", TWO_CPUS)["device_map.json"]).values()) == {"cpu"}


def cards_by_llama_cpp(split: list[int]) -> list[int]:
    """Which device llama.cpp gives each of its layers, the head last: by the cumulative share that exceeds the layer's place."""
    total = sum(split)
    ends = [end / total for end in accumulate(split)]
    return [next(card for card, end in enumerate(ends) if end > layer / total) for layer in range(total)]


def option_of(script: str, name: str) -> str:
    return script.split(f"--{name} ", 1)[1].split(" \\\n")[0].strip("'")


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (FOUR_T4, [0, 0, 1, 2, 2, 2]),
        (OLD_CARDS, [0, 0, 0, 1, 1, 1]),  # layer 2 runs on the processor by --override-tensor
        (on("1xCPU+1xV100-32", ("CPU:0", "w4a16 w4a16"), ("V100-32:0", "w4a16")), [0, 0, 0, 0]),
    ],
)
def test_tensor_split_gives_every_layer_to_the_card_of_its_stage(plan: Plan, expected: list[int]) -> None:
    split = [int(count) for count in option_of(launch_script(plan), "tensor-split").split(",")]
    assert cards_by_llama_cpp(split) == expected


def test_layers_of_the_processor_are_overridden() -> None:
    assert option_of(launch_script(OLD_CARDS), "override-tensor") == r"blk\.(2)\.=CPU"
    assert "--override-tensor" not in launch_script(replace(TWO_CPUS))
    assert "--n-gpu-layers 0" in launch_script(TWO_CPUS)


def test_a_plan_of_16_bits_is_only_converted() -> None:
    script = quantize_script(on("1xV100-32", ("V100-32:0", "16 16")))
    assert "llama-quantize" not in script and script.rstrip().endswith("--outfile model.gguf")


def test_the_context_holds_every_sequence_at_its_longest() -> None:
    assert option_of(launch_script(on("1xT4", ("T4:0", "16"), workload=Batch(3, 10, 6))), "ctx-size") == str(3 * 16)


def test_an_export_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    weights, target = tmp_path / "weights", find_target("vllm")
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    for _ in range(2):
        write_export(target, TWO_CPUS, graph_of(TWO_CPUS), modules_of(TWO_CPUS), weights, tmp_path / "out")
    assert os.access(tmp_path / "out" / "launch.sh", os.X_OK)
    assert (tmp_path / "out" / "model" / "config.json").read_text() == "{}"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="exists and is not"):
        write_export(target, TWO_CPUS, graph_of(TWO_CPUS), modules_of(TWO_CPUS), weights, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
