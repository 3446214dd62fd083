"""Pipelines on the command line: what is printed before and after a pass, where it stops, and a spinner while it takes long."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from llmpq.commands import output
from llmpq.commands.output import progress
from llmpq.passmanager import PLANNING
from tests.conftest import CommandLine

REQUEST = ("demo", "--cluster", "2xCPU", "--batch-size", 2, "--prompt-len", 16, "--gen-len", 8)
QUICK = (*REQUEST, "--indicator", "prior", "--assign", "assign-even")
SPEC = "derive-costs,estimate-sensitivity{indicator=prior},assign-even,annotate-graph,trim-logits,rematerialize,split-by-stage"


def headings(text: str) -> list[str]:
    return [line.removeprefix("== ") for line in text.splitlines() if line.startswith("== ")]


def test_the_program_is_printed_before_and_after_the_passes_named(cli: CommandLine) -> None:
    done = cli("plan", *QUICK, "--print-before", "assign-even", "--print-after", "derive-costs", "--print-after", "assign-even")
    assert done.code == 0
    assert headings(done.err) == ["after derive-costs", "before assign-even", "after assign-even"]
    before, after = done.err.split("== before assign-even\n")[1].split("== after assign-even\n")
    assert after.startswith(before) and after.removeprefix(before).startswith("plan for demo")


def test_all_stands_for_every_pass(cli: CommandLine) -> None:
    done = cli("plan", *QUICK, "--print-after", "all", "--print-before", "all")
    names = PLANNING.replace("joint", "even").split(",")
    assert headings(done.err) == [f"{when} {name}" for name in names for when in ("before", "after")]


def test_a_pass_of_the_lowering_is_gone_to_when_it_is_to_be_printed(cli: CommandLine) -> None:
    done = cli("plan", *QUICK, "--print-after", "annotate-graph", "--json")
    assert done.code == 0 and headings(done.err) == ["after annotate-graph"]
    assert "lm_head = call_module lm_head(getitem)  # stage 1, CPU:1" in done.err
    assert json.loads(done.out)["model"] == "demo"


def test_a_plan_stops_after_any_pass_and_prints_the_program(cli: CommandLine) -> None:
    early = cli("plan", *QUICK, "--stop-after", "estimate-sensitivity")
    assert early.code == 0 and early.out.startswith("layer graph demo") and "plan for" not in early.out
    late = cli("plan", *QUICK, "--stop-after", "insert-transfers", "--json")
    value = json.loads(late.out)
    assert value["plan"]["model"] == "demo"
    assert "send = call_function send(" in value["text"] and "recv = call_function recv(hidden_states" in value["text"]


def test_compile_that_stops_writes_nothing(cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("compile", *QUICK, "--stop-after", "split-by-stage", "-o", out)
    assert done.code == 0 and "stage 1\n" in done.out
    assert not list(tmp_path.iterdir())


def test_a_whole_pipeline_runs_as_it_is_written(cli: CommandLine) -> None:
    done = cli("plan", *REQUEST, "--passes", SPEC, "--print-after", "all", "--json")
    assert done.code == 0
    assert headings(done.err) == [f"after {part.partition('{')[0]}" for part in SPEC.split(",")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--print-after", "split-by-stages"), "--print-after 'split-by-stages': no such pass in the pipeline"),
        (("--print-before", "assign-joint"), "--print-before 'assign-joint': no such pass in the pipeline"),
        (("--stop-after", "assign-joint"), "pass 'assign-joint' is not in the pipeline; it has derive-costs"),
        (("--extra-pass", "nowhere:Pass"), "module 'nowhere' cannot be imported"),
        (("--passes", SPEC), "--passes excludes --assign and --indicator"),
        (("--passes", "derive-costs,,"), "--passes excludes"),
    ],
)
def test_what_is_wrong_with_a_pipeline_is_one_line_and_exit_two(cli: CommandLine, options: tuple[str, ...], message: str) -> None:
    done = cli("plan", *QUICK, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("llmpq: ") and message in done.err and done.err.count("\n") == 1


def test_an_internal_error_is_one_line_and_exit_one(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("llmpq.compiler.plan", broken)
    done = cli("plan", *QUICK)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "internal error at test_pipeline_options.py:" in done.err and "KeyError: 'a defect'; --debug shows" in done.err
    assert "Traceback" not in done.err
    shown = cli("plan", *QUICK, "--debug")
    assert shown.code == 1 and "Traceback" in shown.err and "internal error" in shown.err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would be told, without any patience."""
    written = io.StringIO()
    monkeypatch.setattr(output, "stderr", lambda: Console(file=written, force_terminal=True, width=100))
    monkeypatch.setattr(output, "PATIENCE_S", 0.0)
    return written


def wait_for(text: str, written: io.StringIO) -> None:
    """Until it was drawn; the test fails by never ending well before that matters."""
    for _ in range(500):
        if text in written.getvalue():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} was not drawn: {written.getvalue()!r}")


def test_a_terminal_is_told_what_goes_on_with_the_seconds_until_there_is_progress(terminal: io.StringIO) -> None:
    with progress("planning") as advance:
        wait_for("planning", terminal)
        wait_for("0:00:0", terminal)
        advance("stage 0: q_proj", 1, 4)
        wait_for("1/4", terminal)
        assert "planning" not in terminal.getvalue().rpartition("stage 0: q_proj")[2]


def test_progress_that_is_reported_at_once_needs_no_spinner(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE_S", 1000.0)
    with progress("planning") as advance:
        advance("stage 0: q_proj", 1, 4)
        wait_for("1/4", terminal)
    assert "planning" not in terminal.getvalue()


def test_a_pipe_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(output, "stderr", lambda: Console(file=written))
    monkeypatch.setattr(output, "PATIENCE_S", 0.0)
    with progress("planning") as advance:
        advance("stage 0: q_proj", 1, 4)
    assert written.getvalue() == ""
