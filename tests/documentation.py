"""Pages of the documentation as blocks: commands with what they print, Python, text; and how each is run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from llmpq.cli import COMMANDS, cli
from tests.command_line import ROOT

FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
INLINE = re.compile(r"(?<!`)`(llmpq [^`\n]+)`")
NOT_RUN = re.compile(r"_Not run by the tests: (?P<reason>[^_\n]+)\._\n\n\Z")
VARIES = re.compile(r"<!-- what is printed varies: (?P<reason>[^\n]+) -->\n\Z")
CLOCKED = re.compile(r"<!-- figures vary: (?P<reason>[^\n]+) -->\n\Z")
ELISION = "\n...\n"
PLACEHOLDER = re.compile(r"(^|[\s|=])[A-Z]+(_[A-Z]+)*(\.json)?(\|[A-Z.a-z]+)*(?=[\s|]|$)|[…]|\.\.\.")
# What a command may begin with that is not llmpq: why the tests do not run it, or None where they check the file it names.
OTHERS = {
    "make": None,
    "python": None,
    ".ci/run": None,
    "bash": None,
    "torchrun": "a launcher; examples/torchrun_hosts.py is run instead",
    "pip": "installs from an index",
    "git": "clones from a host",
    "cd": "changes the folder of the reader's shell",
    "source": "changes the reader's shell",
    ".": "changes the reader's shell",
    "pytest": "the tests themselves",
    "curl": "asks a server",
    "chromium": "a browser",
    "VLLM_PP_LAYER_PARTITION": "another engine",
}
QUICKLY = {
    "compile": ("--indicator", "prior", "--quantizer", "rtn", "--no-quality-check"),
    "search": ("--time-limit", "6"),
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: `kind` as it is fenced; `start`, `stop` of its body in the page; `reason` why it is not run, if so.

    varies: why its output is not compared, where it is not. clocked: why its words are compared and its figures are not.
    """

    kind: str
    body: str
    start: int
    stop: int
    reason: str | None
    varies: str | None
    clocked: str | None

    def shows(self, printed: str) -> bool:
        """Whether the block says what was printed, but for figures that vary and for lines left out, where `...` stands."""
        body, found = (self.body, printed) if self.clocked is None else (masked(self.body), masked(printed))
        if ELISION not in self.body:
            return body == found
        parts = [part if self.clocked is None else masked(part) for part in self.body.split(ELISION)]
        if not found.startswith(parts[0]) or not found.endswith(parts[-1]):
            return False
        rest = found
        for part in parts:
            _, here, rest = rest.partition(part) if part else ("", "nothing", rest)
            if not here:
                return False
        return True

    @property
    def commands(self) -> tuple[str, ...]:
        """Command lines: behind `$ ` in a console block, all but comments in one of bash."""
        lines = self.body.splitlines()
        if self.kind == "console":
            return tuple(line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        return tuple(line for line in lines if line.strip() and not line.startswith("#")) if self.kind == "bash" else ()

    @property
    def shows_output(self) -> bool:
        return self.kind == "console" and any(not line.startswith("$ ") for line in self.body.splitlines())


def pages() -> tuple[Path, ...]:
    """Every page that a reader may try commands from."""
    return tuple(
        sorted((*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"))
    )


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        told = [found and found["reason"] for found in (mark.search(before) for mark in (NOT_RUN, VARIES, CLOCKED))]
        yield Block(match["kind"], match["body"], *match.span("body"), *told)


def masked(text: str) -> str:
    """Words alone: figures, cells of figures and the widths of columns left out."""
    return " ".join(re.sub(r"(?<=│)\s*-\s*(?=│)|[-+]?\d[\d.,:%*]*|[─━┏┳┓┡╇┩├┼┤└┴┘]+", " # ", text).split())


def words_of(line: str) -> list[str]:
    """The words of a command line, its comment left out."""
    return shlex.split(line, comments=True)


def is_synopsis(line: str) -> bool:
    """Whether the line stands for many: it has placeholders such as MODEL, or dots."""
    return bool(PLACEHOLDER.search(line.split(" #")[0].split('"')[0]))


def problems(line: str) -> Iterator[str]:
    """What is wrong with a command line of llmpq without running it: no such command, no such option."""
    words = words_of(line.replace("…", "").replace("...", ""))[1:]
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        return
    if name not in COMMANDS:
        if name != name.upper():
            yield f"no command {name!r}"
        return
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    known = {flag for item in command.params for flag in (*item.opts, *item.secondary_opts)} | {"-h", "--help", "--debug"}
    passes_on = bool(command.context_settings.get("ignore_unknown_options"))
    for word in words:
        flag = word.split("=")[0].split("|")[0].strip("[]")
        if re.match(r"-{1,2}[a-z]", flag) and flag not in known and not passes_on:
            yield f"{name} has no option {flag}"


def quick(words: list[str]) -> list[str]:
    """The command with less to search and to measure, in this process, where what it prints is not compared."""
    name, more = words[0], list[str]()
    if name == "compile":
        more += QUICKLY["compile"]
    command = cli.get_command(click.Context(cli), name)
    if command is not None and any("--time-limit" in item.opts for item in command.params) and "--time-limit" not in words:
        more += QUICKLY["search"]
    return [word for word in (*words, *more) if word != "--processes"]


def missing_file(words: list[str]) -> str | None:
    """The script or target that a command of the repository names and that is not there."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        return next((word for word in words[1:] if word not in targets), None)
    names = [word for word in words if word.endswith((".py", ".sh")) or word.startswith(".ci/")]
    return next((name for name in names if not (ROOT / name).is_file()), None)
