"""llmpq export and serve on a compiled model, with a stand-in for vLLM."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmpq import Batch, compile, load
from llmpq.backends.vllm_check import gaps
from llmpq.backends.vllm_environment import PYTHON_VARIABLE, engine_python
from llmpq.commands.engine_check import reference_log_probs, token_windows
from llmpq.errors import InputError
from llmpq.runtime.launcher import free_port
from tests.command_line import ROOT, environment
from tests.conftest import CommandLine
from tests.test_vllm_server import FAKE, is_gone
from tests.values import two_cpus


@pytest.fixture(scope="module")
def mixture_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model on two CPUs, a mixture, compiled the quick way. Not to be written to."""
    out = tmp_path_factory.mktemp("mixture") / "out"
    rules = ("count(w8a8) >= 2", "count(w4a16) >= 2", "first_layer.device != last_layer.device")
    compile(
        "demo",
        two_cpus(),
        Batch(8, 64, 32),
        out=out,
        precisions=("16", "w8a8", "w4a16"),
        constraints=rules,
        indicator="prior",
        quantizer="rtn",
        quality_check=False,
    )
    return out


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An interpreter that has "vLLM 0.32.0", whose server is the stand-in."""
    python = tmp_path / "engine-python"
    server = f'exec {sys.executable} {FAKE} "$@"'
    python.write_text(f'#!/bin/bash\nif [ "$1" = -c ]; then echo ${{LLMPQ_FAKE_VERSION-0.32.0}}; else {server}; fi\n')
    python.chmod(0o755)
    return python


def test_an_export_to_vllm_holds_weights_settings_and_scripts(mixture_out: Path, tmp_path: Path, cli: CommandLine) -> None:
    outcome = cli("export", mixture_out, "--to", "vllm", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert {"README.md", "launch.sh", "llmpq_vllm_plugin.py", "model", "vllm.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    exported = sorted(path.name for path in (tmp_path / "out" / "model").iterdir())
    assert exported == sorted(path.name for path in mixture_out.iterdir())
    assert f"llmpq serve {tmp_path / 'out'}" in outcome.out


def test_the_device_map_covers_every_parameter_of_the_model(mixture_out: Path, tmp_path: Path, cli: CommandLine) -> None:
    assert cli("export", mixture_out, "--to", "device-map", "-o", tmp_path / "out").code == 0
    placed = json.loads((tmp_path / "out" / "device_map.json").read_text())
    names = json.loads((mixture_out / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(any(name.startswith(f"{module}.") for module in placed) for name in names)


def test_an_export_to_transformers_generates(mixture_out: Path, tmp_path: Path, cli: CommandLine) -> None:
    assert cli("export", mixture_out, "--to", "transformers", "-o", tmp_path / "out").code == 0
    command = [sys.executable, str(tmp_path / "out" / "generate.py"), "def main(", "--max-new-tokens", "4"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def main(") and len(done.stdout.strip()) > len("def main(")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--to", "vlm"), 2, "did you mean 'vllm'"),
        (("--to", "llama.cpp", "--check"), 2, "--check runs vLLM"),
        (("--to", "llama.cpp"), 1, "llama.cpp cannot run this plan: layer"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    arguments: tuple[str, ...], code: int, message: str, mixture_out: Path, tmp_path: Path, cli: CommandLine
) -> None:
    outcome = cli("export", mixture_out, *arguments, "-o", tmp_path / "out")
    assert outcome.code == code and message in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_environment_without_vllm_is_told_how_to_get_one(
    mixture_out: Path, engine: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPQ_FAKE_VERSION", "")
    outcome = cli("serve", mixture_out, "--python", engine)
    assert outcome.code == 2 and "has no vLLM; `make engines` makes an environment" in outcome.err
    monkeypatch.setenv("LLMPQ_FAKE_VERSION", "0.33.0")
    outcome = cli("serve", mixture_out, "--python", engine)
    assert outcome.code == 2 and "has vLLM 0.33.0, the export was written for 0.32" in outcome.err
    outcome = cli("serve", mixture_out, "--python", engine.parent / "nowhere")
    assert outcome.code == 2 and "give the interpreter of an environment with vLLM" in outcome.err


def test_an_export_that_fails_its_check_is_an_error_with_the_figures(
    mixture_out: Path, tmp_path: Path, engine: Path, cli: CommandLine
) -> None:
    outcome = cli("export", mixture_out, "--to", "vllm", "-o", tmp_path / "out", "--check", "--python", engine)
    assert outcome.code == 1
    assert "vLLM does not run what was compiled: log-probabilities differ from the dequantized reference by" in outcome.err
    assert "vLLM has 7 KV blocks" in outcome.err


def test_a_compiled_model_generates_through_vllm_while_it_serves(mixture_out: Path, engine: Path) -> None:
    compiled = load(mixture_out)
    with compiled.vllm(str(engine)) as vllm:
        texts = compiled.generate(["def main(", "import"], max_new_tokens=2, backend=vllm)
    last = [compiled.encode([prompt])[0][-1] for prompt in ("def main(", "import")]
    assert texts == [compiled.tokenizer.decode([token, 4], skip_special_tokens=True) for token in last]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_and_leaves_no_process(number: int, mixture_out: Path, engine: Path) -> None:
    command = [sys.executable, "-m", "llmpq", "serve", str(mixture_out), "--python", str(engine), "--port"]
    command.append(port := str(free_port()))
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stderr is not None
        said = ""
        while "serving demo at" not in said and (line := serving.stderr.readline()):
            said += line
        assert f"serving demo at http://127.0.0.1:{port}/v1" in said and f"--port {port}" in said, said
        (child,) = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text().split()
        serving.send_signal(number)
        assert serving.wait(60) == 130
    assert is_gone(int(child))


def test_a_server_that_ends_by_itself_is_an_error(
    mixture_out: Path, engine: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMPQ_FAKE", "dies")
    outcome = cli("serve", mixture_out, "--python", engine, "--quiet")
    assert outcome.code == 1 and "ValueError: no kernel for this weight" in outcome.err


def test_the_interpreter_is_the_one_named_the_variable_then_the_one_of_make_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    assert engine_python(None) == sys.executable
    (tmp_path / ".engines" / "bin").mkdir(parents=True)
    (tmp_path / ".engines" / "bin" / "python").touch()
    assert engine_python(None) == str(tmp_path / ".engines" / "bin" / "python")
    monkeypatch.setenv(PYTHON_VARIABLE, "/elsewhere/python")
    assert engine_python(None) == "/elsewhere/python"
    assert engine_python("mine") == "mine"


def test_windows_are_spread_over_the_text_and_fit_the_server(mixture_out: Path, tmp_path: Path) -> None:
    windows = token_windows(mixture_out, "report", 40)
    assert [len(window) for window in windows] == [40] * 4
    assert len({tuple(window) for window in windows}) == 4
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="a check needs at least 2"):
        token_windows(mixture_out, str(tmp_path / "empty.txt"), 40)


def test_the_reference_gives_a_log_probability_for_every_token_but_the_first(mixture_out: Path) -> None:
    windows = token_windows(mixture_out, "report", 12)[:2]
    found = reference_log_probs(mixture_out, windows)
    assert [len(numbers) for numbers in found] == [11, 11]
    assert all(number < 0 for numbers in found for number in numbers)
    rounded = reference_log_probs(mixture_out, windows, in_bf16=True)
    assert 0 < max(gaps(rounded, found)) < 1
