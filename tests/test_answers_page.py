"""docs/answers.md: every command on the page is run, and prints what stands there."""

import shlex
from pathlib import Path

import pytest

from tests.command_line import ROOT
from tests.conftest import CommandLine

PAGE = ROOT / "docs" / "answers.md"
START, END = "```console\n", "```\n"


def sections(text: str) -> list[str]:
    """Prose and console blocks in turn, prose first; blocks without their fences."""
    parts = []
    for number, piece in enumerate(text.split(START)):
        block, fence, prose = piece.partition(END) if number else ("", "", piece)
        parts += [block, prose] if fence else [prose]
    return parts


def run_block(block: str, cli: CommandLine) -> str:
    """The block with what its commands print now; `> FILE` keeps the output of one."""
    lines = []
    for line in block.splitlines():
        if not line.startswith("$ "):
            continue
        words = shlex.split(line.removeprefix("$ llmpq "))
        target = words[words.index(">") + 1] if ">" in words else None
        done = cli(*words[: words.index(">")] if target else words)
        assert done.code == 0, done.err
        if target:
            Path(target).write_text(done.out)
        lines += [line, *([] if target else [row.rstrip() for row in done.out.splitlines()])]
    return "\n".join(lines) + "\n"


def test_every_command_prints_what_stands_on_the_page(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    text = PAGE.read_text(encoding="utf-8")
    parts = sections(text)
    assert parts[1::2] and START.join([parts[0], *(a + END + b for a, b in zip(parts[1::2], parts[2::2], strict=True))]) == text
    found = [run_block(part, cli) if number % 2 else part for number, part in enumerate(parts)]
    page = START.join([found[0], *(block + END + prose for block, prose in zip(found[1::2], found[2::2], strict=True))])
    if pytestconfig.getoption("--update-golden"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page, "run pytest --update-golden"


@pytest.mark.parametrize("command", ["explain", "diff", "whatif", "pareto"])
def test_the_page_shows_every_command_of_answers(command: str) -> None:
    assert f"$ llmpq {command} " in PAGE.read_text(encoding="utf-8")
