"""The terminal: what every command shares, whatever it answers."""

import json
import sys
import warnings
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from rich.cells import cell_len

from llmpq.cli import COMMANDS, _show_warning, cli
from llmpq.commands.output import PATIENCE_S, progress
from llmpq.errors import LlmpqWarning
from tests.command_line import process
from tests.conftest import CommandLine

PLANNED = ("--cluster", "1xT4,1xV100-32", "--time-limit", "5", "--prompt-len", "64")
SERVED = ("--cluster", "2xA100-40", "--engine", "vllm", "--rate", "1", "--requests", "20", "--time-limit", "10")
# What each command answers from configurations alone, and with what; the others need a compiled model, an engine or minutes.
ANSWERS: dict[str, tuple[object, ...]] = {
    "plan": ("opt-13b", *PLANNED, "--explain-memory"),
    "max-context": ("opt-1.3b", "-c", "1xT4", "--precisions", "w8a16"),
    "max-batch": ("opt-1.3b", "-c", "1xT4", "--precisions", "w8a16"),
    "whatif": ("opt-1.3b", *PLANNED, "--replace", "T4:0=L4", "--price", "T4=0.3"),
    "pareto": ("opt-13b", *PLANNED, "--points", 3),
    "simulate": ("opt-13b", *SERVED),
    "explain": ("PLAN", "--device", "T4:0"),
    "diff": ("PLAN", "OTHER"),
    "devices": (),
    "passes": (),
    "backends": (),
    "sensitivity": ("opt-1.3b", "--indicator", "prior"),
}
WITHOUT_JSON = {"serve": "runs until it is stopped", "solve": "prints JSON only", "completion": "prints a script"}
WITHOUT_QUIET = {"completion": "prints a script"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """ANSWERS with two plans on disk."""
    from llmpq import Batch
    from llmpq.compiler import plan
    from llmpq.serialize import dumps

    folder = tmp_path_factory.mktemp("plans")
    for name, batch_size in (("PLAN", 32), ("OTHER", 8)):
        made = plan("opt-1.3b", "1xT4,1xV100-32", Batch(batch_size, 512, 100), time_limit_s=5.0).plan
        (folder / name).write_text(dumps(made), encoding="utf-8")
    return {
        name: tuple(folder / word if word in ("PLAN", "OTHER") else word for word in words) for name, words in ANSWERS.items()
    }


def options_of(name: str) -> dict[str, click.Parameter]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return {flag: parameter for parameter in command.params for flag in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_and_quiet_but_where_it_says_why_not(name: str) -> None:
    options = options_of(name)
    assert ("--json" in options) == (name not in WITHOUT_JSON)
    assert ("--quiet" in options) == (name not in WITHOUT_QUIET)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_or_has_a_default_that_does(name: str) -> None:
    for flag, option in options_of(name).items():
        if isinstance(option, click.Option):
            assert option.help or option.show_default, flag


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_fits_into_80_columns_is_plain_and_is_the_same_as_json(
    name: str, answers: dict[str, tuple[object, ...]], cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown, valued = cli(name, *answers[name], "--quiet"), cli(name, *answers[name], "--quiet", "--json")
    assert (shown.code, shown.err, valued.code, valued.err) == (0, "", 0, "")
    assert json.loads(valued.out)
    assert "\x1b" not in shown.out
    tables = [line for line in shown.out.splitlines() if line[:1] in "┏┃┡│├└"]
    assert tables or name in ("explain", "sensitivity")
    assert all(cell_len(line) <= 80 for line in tables), max(tables, key=cell_len)


def test_quiet_silences_notices_and_nothing_else(cli: CommandLine) -> None:
    words = ("plan", "opt-1.3b", "--cluster", "1xT4,1xV100-32", "--engine", "vllm", "--batch-size", 4)
    told, quiet = cli(*words), cli(*words, "-q")
    assert "notice: " in told.err and quiet.err == "" and quiet.out == told.out
    failed = cli("plan", "opt-1.4b", "--cluster", "1xT4", "--quiet")
    assert failed.code == 2 and "did you mean 'opt-1.3b'?" in failed.err


def test_what_we_warn_of_is_one_line_and_what_libraries_warn_of_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("always")
        warnings.warn("the module has changed", LlmpqWarning, stacklevel=1)
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "llmpq: notice: the module has changed"
    assert second.endswith("DeprecationWarning: deprecated")


@pytest.mark.parametrize(
    "words",
    [
        ("plann",),
        ("plan", "demo", "--clutser", "1xT4"),
        ("plan", "llama-3-80b", "-c", "1xT4"),
        ("plan", "demo", "-c", "1xT44"),
        ("plan", "demo", "-c", "1xT4", "--indicator", "fischer"),
        ("plan", "demo", "-c", "1xT4", "--precisions", "w8a61"),
        ("plan", "demo", "-c", "1xT4", "--assign", "assign-jiont"),
        ("plan", "demo", "-c", "1xT4", "--engine", "vlm"),
    ],
)
def test_a_slip_of_the_keyboard_is_answered_with_the_nearest_name(words: tuple[str, ...], cli: CommandLine) -> None:
    outcome = cli(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "did you mean" in outcome.err.lower() and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("pl",), {"plan"}),
        (("plan", "llama-3-"), {"llama-3-8b", "llama-3-70b", "llama-3-405b"}),
        (("plan", "demo", "--assign", "assign-e"), {"assign-even"}),
        (("plan", "demo", "--engine", "v"), {"vllm"}),
        (("plan", "demo", "--max-ppl"), {"--max-ppl-increase"}),
        (("export", "out", "--to", "trans"), {"transformers"}),
        (("nonsense", "x"), set()),
    ],
)
def test_a_shell_is_offered_commands_options_and_names(typed: tuple[str, ...], offered: set[str]) -> None:
    completion = ShellComplete(cli, {}, "llmpq", "_LLMPQ_COMPLETE")
    found = {item.value for item in completion.get_completions(list(typed[:-1]), typed[-1])}
    assert found == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_llmpq(shell: str, cli: CommandLine) -> None:
    assert f"_LLMPQ_COMPLETE={shell}_complete" in cli("completion", shell).out


class Terminal:
    """A standard error that says it is a terminal, and keeps what is drawn."""

    def __init__(self) -> None:
        self.drawn = ""

    def write(self, text: str) -> int:
        self.drawn += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("color", "expected"), [(None, True), ("1", False)])
def test_progress_is_drawn_on_a_terminal_with_the_time_left_and_without_colour_where_there_is_to_be_none(
    color: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if color is not None:
        monkeypatch.setenv("NO_COLOR", color)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress() as advance:
        advance("layers", 3, 4)
    assert "layers" in screen.drawn and "3/4" in screen.drawn and "-:--:--" in screen.drawn
    assert ("\x1b[38;5;" in screen.drawn or "\x1b[3" in screen.drawn) == expected


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as advance:
        advance("layers", 3, 4)
    assert capsys.readouterr().err == ""
    assert PATIENCE_S == 1.0


def test_tables_are_ascii_where_the_encoding_is(tmp_path: Path) -> None:
    done = process("env", "PYTHONIOENCODING=ascii", sys.executable, "-m", "llmpq", "backends")
    assert (done.code, done.err) == (0, "") and done.out.startswith("+--")
