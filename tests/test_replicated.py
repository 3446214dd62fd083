"""Replicas on disk: a folder for each, complete by itself, and what shares requests out between them."""

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from llmpq import Batch, compile, load
from llmpq.compiler import plan
from llmpq.errors import InputError
from llmpq.export.router import nginx_config, start_script, weights
from llmpq.hardware.cluster import Cluster
from llmpq.replicated import compile_replicas, is_replicated, load_replicas
from llmpq.runtime.launcher import free_port
from tests.command_line import environment
from tests.conftest import CommandLine
from tests.test_vllm_server import FAKE

QUICK = ("--indicator", "prior", "--quantizer", "rtn", "--no-quality-check", "--precisions", "16,w8a16")
WAIT_S = 30.0
TWINS = Cluster.from_yaml("name: twins\ndevices:\n  - {type: CPU, count: 2, memory: 64 MiB, host: a}\n", "twins.yaml")


@pytest.fixture(scope="module")
def replicas_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model on two equal CPUs that each hold it alone. Not to be written to."""
    out = tmp_path_factory.mktemp("replicas") / "out"
    options = {"indicator": "prior", "precisions": ("16", "w8a16"), "replicas": 2}
    program = plan("demo", TWINS, Batch(8, 64, 32), **options)  # type: ignore[arg-type]
    compile_replicas("demo", program.require("plan"), out, quantizer="rtn", quality_check=False, indicator="prior")
    return out


def test_every_replica_is_a_compiled_model(replicas_out: Path) -> None:
    assert sorted(path.name for path in replicas_out.iterdir()) == ["plan.json", "replica-0", "replica-1"]
    assert is_replicated(replicas_out)
    first, second = load_replicas(replicas_out)
    assert {stage.device for one in (first, second) for stage in one.plan.stages} == {"CPU:0", "CPU:1"}
    assert first.plan.batch.batch_size + second.plan.batch.batch_size >= 8
    assert first.smoke_test() == [first.plan.stages[0].device]


def test_a_folder_of_replicas_is_no_single_model(replicas_out: Path) -> None:
    with pytest.raises(InputError, match=r"holds replicas, each a compiled model; give one of them, such as .*replica-0"):
        load(replicas_out)
    with pytest.raises(InputError, match=r"holds no replicas; `llmpq compile MODEL --replicas N"):
        load_replicas(replicas_out / "replica-0")
    with pytest.raises(InputError, match="the plan has several pipelines"):
        compile("demo", TWINS, Batch(8, 64, 32), indicator="prior", precisions=("16", "w8a16"), replicas=2)


def test_compile_writes_replicas_where_they_are_faster(tmp_path: Path, cli: CommandLine) -> None:
    sizes = ("--batch-size", 8, "--prompt-len", 64, "--gen-len", 32)
    cluster = tmp_path / "twins.yaml"
    cluster.write_text("name: twins\ndevices:\n  - {type: CPU, count: 2, memory: 64 MiB, host: a}\n")
    outcome = cli("compile", "demo", "-c", cluster, *sizes, *QUICK, "--replicas", 2, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "replica-0, replica-1, each a compiled model" in outcome.out
    whole = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [pipeline["replica"]["weight"] for pipeline in whole["pipelines"]] == [0.5, 0.5]


def test_an_export_to_vllm_starts_a_server_for_each_replica(replicas_out: Path, tmp_path: Path, cli: CommandLine) -> None:
    outcome = cli("export", replicas_out, "--to", "vllm", "-o", tmp_path / "export")
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == ["launch.sh", "nginx.conf", "replica-0", "replica-1"]
    python = tmp_path / "engine-python"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} {FAKE} "$@"\n')
    python.chmod(0o755)
    port = free_port()
    variables = environment() | {"PYTHON": str(python), "FIRST_PORT": str(port)}
    script = subprocess.Popen(["bash", str(tmp_path / "export" / "launch.sh")], env=variables, start_new_session=True)
    try:
        assert [answers(number) for number in (port, port + 1)] == [200, 200]
    finally:
        script.terminate()
        script.wait(WAIT_S)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)


def answers(port: int) -> int | None:
    """The status that the server at the port answers with, once it does."""
    for _ in range(int(WAIT_S * 10)):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return int(answer.status)
        time.sleep(0.1)
    return None


def test_the_router_knows_every_server_by_its_weight(replicas_out: Path) -> None:
    whole = plan("demo", TWINS, Batch(8, 64, 32), indicator="prior", precisions=("16", "w8a16"), replicas=2).require("plan")
    text, (first, second) = nginx_config(whole), weights(whole)
    assert f"server 127.0.0.1:8001 weight={first};  # replica-0: {whole.pipelines[0].stages[0].device}" in text
    assert f"server 127.0.0.1:8002 weight={second};" in text
    assert first >= second >= 1
    assert start_script(whole).count("/launch.sh --port $((FIRST_PORT + ") == 2
