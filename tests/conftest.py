"""Shared fixtures: golden files, the command line in this process, and compiled demo models."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import CLUSTER, WORKLOAD, Outcome, llmpq

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[[str, str], None]
CommandLine = Callable[..., Outcome]


def pytest_configure() -> None:
    """Ctrl-C is tested in child processes, which ignore it where the tests were started in the background of a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="Write what the tests print to tests/golden instead of comparing."
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden(name, text)`: the text must equal tests/golden/NAME; a missing file fails."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text.rstrip("\n") + "\n")
        assert path.is_file(), f"tests/golden/{name} is missing; run pytest --update-golden and read what it wrote"
        assert text.rstrip("\n") + "\n" == path.read_text()

    return check


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """`cli("plan", "demo", …)`: the command line in this process."""
    from llmpq.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["llmpq", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        assert left.value.code is None or isinstance(left.value.code, int)
        return Outcome(left.value.code or 0, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def compile_of_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The main job's first command, as a process: the output directory and what it said."""
    out = tmp_path_factory.mktemp("main-job") / "out"
    return out, llmpq("compile", "demo", "--cluster", CLUSTER, *WORKLOAD, "-o", out)


@pytest.fixture(scope="session")
def demo_out(compile_of_demo: tuple[Path, Outcome]) -> Path:
    """The demo model compiled for the example cluster. Not to be written to."""
    out, outcome = compile_of_demo
    assert outcome.code == 0, outcome.err
    return out


@pytest.fixture(scope="session")
def mixed_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model on two roomy devices with every precision in it. Not to be written to."""
    return mixture(tmp_path_factory.mktemp("mixed") / "out", ("16", "w8a8", "w8a16", "w4a16"))


@pytest.fixture(scope="session")
def weight_only_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without rounded activations. Not to be written to."""
    return mixture(tmp_path_factory.mktemp("weight-only") / "out", ("16", "w8a16", "w4a16"))


def mixture(out: Path, precisions: tuple[str, ...]) -> Path:
    """The demo model compiled to `out`, two layers at least at each precision, in two stages."""
    from llmpq import Batch, compile
    from tests.values import two_cpus

    rules = [*(f"count({precision}) >= 2" for precision in precisions), "first_layer.device != last_layer.device"]
    compile(
        "demo",
        two_cpus(),
        Batch(4, 48, 24),
        out=out,
        precisions=precisions,
        constraints=rules,
        indicator="prior",
        quantizer="rtn",
        quality_check=False,
    )
    return out
