"""Pipelines of vLLM as llmpq exports, checks and serves them."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import llmpq
from llmpq.export.vllm_settings import VllmSettings
from llmpq.frontend.models import load_tokenizer
from llmpq.runtime.launcher import free_port
from llmpq.serialize import loads
from tests.command_line import environment
from tests.command_line import llmpq as command_line
from tests.engines.vllm_run import PYTHON, ROOT
from tests.test_vllm_server import is_gone

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not PYTHON.is_file(), reason="there is no environment .engines; `make engines` makes it"),
]
BATCH = llmpq.Batch(4, 80, 17)
ALL_PRECISIONS = tuple(f"count({name}) >= 2" for name in ("16", "w8a8", "w8a16", "w4a16"))
START_LIMIT_S = 600


def compiled_in(out: Path, partition: tuple[int, ...], rules: tuple[str, ...] = ALL_PRECISIONS, **options: Any) -> Path:
    """The demo model, by default at all four precisions, so many layers on each of so many CPUs."""
    starts = [sum(partition[:stage]) for stage in range(len(partition))]
    places = tuple(
        f"layers[{start}:{start + length}].device == 'CPU:{stage}'"
        for stage, (start, length) in enumerate(zip(starts, partition))
    )
    cluster = f"{len(partition)}xCPU"
    llmpq.compile(
        "demo",
        cluster,
        BATCH,
        out=out,
        engine="vllm",
        constraints=(*rules, *places),
        indicator="prior",
        quantizer="rtn",
        quality_check=False,
        **options,
    )
    return out


def settings_of(export: Path) -> VllmSettings:
    return loads(VllmSettings, (export / "vllm.json").read_text(), "vllm.json")


@pytest.mark.parametrize("partition", [(6, 6), (9, 3), (4, 4, 4)], ids=str)
def test_an_exported_pipeline_computes_the_reference_with_the_blocks_predicted(
    partition: tuple[int, ...], tmp_path: Path
) -> None:
    out = compiled_in(tmp_path / "out", partition)
    export = tmp_path / "export"
    done = command_line("export", out, "--to", "vllm", "-o", export, "--check", "--python", PYTHON, "--json")
    assert done.code == 0, done.err[-4000:]
    check = json.loads(done.out)["check"]
    print(partition, check)
    assert settings_of(export).partition == partition
    assert check["mean_difference"] <= check["tolerance"] and check["kv_blocks_found"] == check["kv_blocks_predicted"]


def test_fp8_weights_are_computed_as_the_reference_has_them(tmp_path: Path) -> None:
    out = compiled_in(tmp_path / "out", (7, 5), ("count(fp8) >= 6",), precisions="16,fp8")
    export = tmp_path / "export"
    done = command_line("export", out, "--to", "vllm", "-o", export, "--check", "--python", PYTHON, "--json")
    assert done.code == 0, done.err[-4000:]
    check = json.loads(done.out)["check"]
    print(check)
    assert check["mean_difference"] <= check["tolerance"] and check["kv_blocks_found"] == check["kv_blocks_predicted"]


def test_a_cache_smaller_than_the_workload_wants_is_predicted_too(tmp_path: Path) -> None:
    """A plan for the own runtime, which counts no blocks: the tightest device leaves fewer than all sequences need."""
    cluster = tmp_path / "tight.yaml"
    cluster.write_text(
        "name: tight\ndevices:\n  - {type: CPU, memory: 4800 KiB, host: a}\n  - {type: CPU, memory: 4800 KiB, host: a}\n"
    )
    out = tmp_path / "out"
    llmpq.compile(
        "demo",
        cluster,
        llmpq.Batch(16, 80, 10),
        out=out,
        precisions="w4a16",
        sensitivity_budget=10.0,
        indicator="prior",
        quantizer="rtn",
        quality_check=False,
    )
    done = command_line("export", out, "--to", "vllm", "-o", tmp_path / "export", "--check", "--python", PYTHON, "--json")
    assert done.code == 0, done.err[-4000:]
    settings, check = settings_of(tmp_path / "export"), json.loads(done.out)["check"]
    print(settings.partition, settings.kv_blocks_needed, check)
    assert settings.kv_blocks < settings.kv_blocks_needed
    assert check["kv_blocks_found"] == settings.kv_blocks


@pytest.fixture
def serving(tmp_path: Path) -> Any:
    """(process, its port, what it said on stdout up to now) of `llmpq serve --check` on three unequal stages."""
    out = compiled_in(tmp_path / "out", (2, 7, 3))
    port = free_port()
    command = [sys.executable, "-m", "llmpq", "serve", str(out), "--check", "--python", str(PYTHON), "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        yield process, port, log
    finally:
        process.kill()
        process.wait()


def post(port: int, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=START_LIMIT_S) as answer:
        return json.loads(answer.read())


def descendants(pid: int) -> set[int]:
    children = {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}
    return children.union(*(descendants(child) for child in children))


def test_the_server_speaks_the_openai_protocol_on_loopback_and_stops_cleanly(serving: Any) -> None:
    process, port, log = serving
    said = ""
    while "\n}\n" not in said and (line := process.stdout.readline()):
        said += line
    assert said, log.read_text()[-4000:]
    check = json.loads(said)["check"]
    print((2, 7, 3), check)
    assert check["mean_difference"] <= check["tolerance"] and check["kv_blocks_found"] == check["kv_blocks_predicted"]
    prompt = load_tokenizer(ROOT / "llmpq" / "data" / "models" / "demo").encode("def main(")
    answer = post(port, "/v1/completions", {"model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0})
    assert answer["model"] == "demo" and answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] <= 8
    started = descendants(process.pid)
    assert len(started) >= 4, "an API server, an engine and three ranks"
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 130
    assert all(is_gone(pid) for pid in started)
