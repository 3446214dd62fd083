"""The main job, end to end: the demo model on two unlike devices that are each too small for it."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmpq import Batch, Cluster, Plan, load
from llmpq.checkpoint.output_checks import read_plan
from llmpq.compiler import plan
from llmpq.errors import InfeasibleError
from llmpq.hardware.cluster import Device
from llmpq.runtime.launcher import free_port
from tests.command_line import CLUSTER, Outcome, llmpq, process
from tests.conftest import CommandLine

EXAMPLE_BATCH = Batch(8, 64, 32)
TORCHRUN = Path(sys.executable).with_name("torchrun")
PROMPT = ("--prompt", "def main(", "--max-new-tokens", "40")


def roomier(devices: tuple[Device, ...], factor: float) -> Cluster:
    """Those devices of the example cluster with so many times their memory."""
    more = tuple(replace(device, memory_bytes=round(device.memory_bytes * factor)) for device in devices)
    return replace(Cluster.load(CLUSTER), devices=more)


def plan_at(precision: str, cluster: Cluster) -> Plan:
    """The example's workload with every layer at `precision`, whatever that costs in quality."""
    made: Plan = plan("demo", cluster, EXAMPLE_BATCH, precisions=precision, theta=0.0, indicator="prior").require("plan")
    return made


@pytest.mark.parametrize("index", [0, 1])
def test_each_device_of_the_example_is_too_small_for_the_model_at_its_smallest_precision(index: int) -> None:
    device = Cluster.load(CLUSTER).devices[index]
    with pytest.raises(InfeasibleError, match=rf"no plan exists: {device.name} is .* KiB short|MiB short"):
        plan_at("w4a16", roomier((device,), 1.02))
    assert len(plan_at("w4a16", roomier((device,), 2.0)).stages) == 1


def test_both_devices_of_the_example_are_too_small_for_bf16_and_hold_four_bits() -> None:
    first, second = Cluster.load(CLUSTER).devices
    assert (first.memory_bytes, first.speed) != (second.memory_bytes, second.speed)
    with pytest.raises(InfeasibleError, match=r"no plan exists: CPU:0 is .* short; CPU:1 is .* short"):
        plan_at("16", roomier((first, second), 1.05))
    assert len(plan_at("w4a16", roomier((first, second), 0.95)).stages) == 2


def test_compile_makes_two_quantized_stages_and_says_so(compile_of_demo: tuple[Path, Outcome]) -> None:
    out, outcome = compile_of_demo
    assert (outcome.code, outcome.err) == (0, "")
    made = read_plan(out)
    assert sorted(stage.device for stage in made.stages) == ["CPU:0", "CPU:1"]
    assert any(option != "16" for option in made.options)
    assert "demo: 2 stages, bfloat16" in outcome.out and f"written         {out}" in outcome.out
    assert len(list(out.glob("model-stage-0000?-of-00002.safetensors"))) == 2
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_verify_finds_it_sound(demo_out: Path) -> None:
    outcome = llmpq("verify", demo_out)
    assert (outcome.code, outcome.err) == (0, "")
    assert "names, sizes and checksums as in the manifest" in outcome.out
    assert "every stage computed finite numbers" in outcome.out


@pytest.fixture(scope="module")
def text(demo_out: Path) -> str:
    """What one process makes of the prompt, on one thread as the processes of a pipeline have it, for equal bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    (continuation,) = load(demo_out).generate("def main(", max_new_tokens=40)
    torch.set_num_threads(before)
    assert len(continuation) > 20
    return f"def main({continuation}\n"


def test_run_streams_the_prompt_and_what_follows(demo_out: Path, cli: CommandLine, text: str) -> None:
    outcome = cli("run", demo_out, *PROMPT)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out[:20] == text[:20] and outcome.out.endswith("\n")


def test_one_process_per_stage_writes_what_one_process_writes(demo_out: Path, text: str) -> None:
    outcome = llmpq("run", demo_out, "--processes", *PROMPT)
    assert (outcome.code, outcome.out) == (0, text), outcome.err


@pytest.mark.skipif(not TORCHRUN.is_file(), reason="there is no torchrun beside this Python")
def test_plain_torchrun_writes_what_one_process_writes(demo_out: Path, text: str) -> None:
    stages = len(read_plan(demo_out).stages)
    outcome = process(TORCHRUN, "--nproc-per-node", stages, "--master-port", free_port(), "-m", "llmpq", "run", demo_out, *PROMPT)
    assert (outcome.code, outcome.out) == (0, text), outcome.err


def test_eval_scores_the_original_and_the_compiled_model(demo_out: Path, cli: CommandLine) -> None:
    arguments = ("--text", "report", "--max-tokens", 1024, "--json")
    original = json.loads(cli("eval", "demo", *arguments).out)
    compiled = json.loads(cli("eval", demo_out, *arguments, "--against", "demo").out)
    assert original["tokens"] == compiled["tokens"] == 1023 and original["kl"] is None
    assert 0 < compiled["kl"] < 0.5 and abs(compiled["cross_entropy"] - original["cross_entropy"]) < 0.25
