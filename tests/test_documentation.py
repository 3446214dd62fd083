"""The documentation: every command and every block of Python on every page is run, and prints what stands there.

A block is run in a folder of its page, in order; `out` is a compiled demo model where the page does not make one. What is not run
says why on the page, and its commands are known to parse. Where no output is shown, plans are searched for three seconds, models
quantized the quick way.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import pytest

from llmpq.cli import COMMANDS
from llmpq.options import Options
from tests.command_line import CLUSTER, ROOT, WORKLOAD
from tests.conftest import CommandLine
from tests.documentation import ELISION, OTHERS, Block, blocks, is_synopsis, missing_file, pages, problems, quick, words_of
from tests.documentation import INLINE as INLINE_COMMANDS

PAGES = [page.relative_to(ROOT).as_posix() for page in pages()]
MAIN_JOB = ["compile", "demo", "--cluster", CLUSTER.relative_to(ROOT).as_posix(), *WORKLOAD, "-o", "out"]
JSON_FILE = "problem.json"  # what a block of JSON is on disk
QUICK: dict[str, Any] = {"indicator": "prior", "quantizer": "rtn", "quality_check": False}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def runs(page: str) -> bool:
    """Whether anything on the page is run."""
    return any(
        block.kind == "python" or any(line.startswith("llmpq ") for line in block.commands)
        for block in blocks(text_of(page))
        if block.reason is None
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_the_page_parses(page: str) -> None:
    text = text_of(page)
    plain = "\n".join(block.body for block in blocks(text) if not block.kind)
    assert not re.search(r"^(\$ )?llmpq ", plain, re.M), "fence commands as console or bash, so that they are run"
    lines = [line for block in blocks(text) for line in block.commands]
    inline = INLINE_COMMANDS.findall(text)
    wrong = [f"{line}: {found}" for line in (*lines, *inline) if line.startswith("llmpq ") for found in problems(line)]
    for line in lines:
        words = words_of(line)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if not words or words[0] == "llmpq":
            continue
        assert words[0] in OTHERS, f"{line}: neither run nor known"
        if OTHERS[words[0]] is None and (missing := missing_file(words)):
            wrong.append(f"{line}: {missing} is not there")
    assert not wrong


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as the root of the repository looks to a reader, whose modules can be imported."""
    for name in ("examples", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.syspath_prepend(str(tmp_path))
    invalidate_caches()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)])
def test_every_block_of_the_page_runs_and_prints_what_stands_there(
    page: str,
    home: Path,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    request: pytest.FixtureRequest,
) -> None:
    text, named = text_of(page), dict[str, Any]()
    monkeypatch.setattr("llmpq.compiler.Options", partial(Options, **QUICK))
    updating, found = pytestconfig.getoption("--update-golden"), []
    for block in blocks(text):
        if block.reason is not None:
            continue
        if block.kind == "python":
            run_python(block, named, page)
        elif block.kind == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)\n", block.body)):
            Path(name[1]).write_text(block.body, encoding="utf-8")
        elif block.kind == "json":
            Path(JSON_FILE).write_text(block.body, encoding="utf-8")
        elif block.commands:
            printed = run_commands(block, cli, home, request)
            kept = block.shows(printed) and (ELISION in block.body or not updating)
            if block.shows_output and block.varies is None and not kept:
                found.append((block, printed))
    for block, printed in reversed(found):
        text = text[: block.start] + printed + text[block.stop :]
    if updating:
        (ROOT / page).write_text(text, encoding="utf-8")
    assert text_of(page) == text, "run pytest tests/test_documentation.py --update-golden"


def run_python(block: Block, named: dict[str, Any], page: str) -> None:
    """A block that begins with `# NAME.py` is that file; any other one is run after those before it."""
    first = block.body.split("\n", 1)[0]
    if name := re.fullmatch(r"# (\w+\.py)", first):
        Path(name[1]).write_text(block.body, encoding="utf-8")
        invalidate_caches()
    else:
        exec(compile(block.body, page, "exec"), named)


def run_commands(block: Block, cli: CommandLine, home: Path, request: pytest.FixtureRequest) -> str:
    """The block with what its commands print now; `> FILE` keeps the output of one."""
    lines = []
    for line in block.commands:
        lines.append(f"$ {line}")
        words = words_of(line)
        if words[0] != "llmpq" or is_synopsis(line):
            continue
        if "out" in words and not (home / "out").exists() and "compile" not in words:
            shutil.copytree(request.getfixturevalue("demo_out"), home / "out")
        target = words[words.index(">") + 1] if ">" in words else None
        words = words[1 : words.index(">")] if target else words[1:]
        if words == MAIN_JOB:
            shutil.copytree(request.getfixturevalue("demo_out"), home / "out")
            continue
        done = cli(*(words if block.shows_output and block.varies is None else quick(words)))
        expected = 3 if "no plan exists" in block.body else 2 if re.search(r"^llmpq: (?!notice)", block.body, re.M) else 0
        assert done.code == expected, f"{line}: {done.err}"
        if target:
            Path(target).write_text(done.out, encoding="utf-8")
        else:
            lines += [row.rstrip() for row in (done.out + done.err).splitlines()]
    return "\n".join(lines) + "\n"


def test_every_command_of_the_command_line_is_shown_somewhere() -> None:
    shown = {
        words_of(line)[1] for page in PAGES for block in blocks(text_of(page)) for line in block.commands if "llmpq " in line
    }
    assert set(COMMANDS) <= shown


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why_to_the_reader(page: str) -> None:
    """A reason before a block that would run without it, and no reason that stands before nothing."""
    text = text_of(page)
    assert text.count("_Not run by the tests: ") == sum(block.reason is not None for block in blocks(text))
    assert text.count("<!-- what is printed varies: ") == sum(block.varies is not None for block in blocks(text))
    assert text.count("<!-- figures vary: ") == sum(block.clocked is not None for block in blocks(text))


def test_a_block_may_leave_lines_out_and_figures_that_go_by_the_clock_are_not_compared() -> None:
    plain = Block("console", "$ x\na 1\n...\nz 9\n", 0, 0, None, None, None)
    clocked = Block("console", "$ x\n│ a │ 1.5 │ - │\n├───┼───┤\n", 0, 0, None, None, "a search that stops by the clock")
    assert plain.shows("$ x\na 1\nmiddle\nz 9\n")
    assert replace(plain, body="$ x\na 1\n...\nz 9\n...\n").shows("$ x\na 1\nmiddle\nz 9\nend\n")
    assert not any(plain.shows(printed) for printed in ("$ x\na 1\nmiddle\nz 8\n", "$ y\na 1\nz 9\n", "$ x\nz 9\na 1\n"))
    assert clocked.shows("$ x\n│ a │  12 │ 52 │\n├───┼────┤\n") and not clocked.shows("$ x\n│ b │ 1.5 │ - │\n├───┼───┤\n")
