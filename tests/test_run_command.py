"""llmpq run: what it prints of several prompts, of the stages, and of a run that lost one."""

import json
from pathlib import Path

import pytest

from llmpq import load
from llmpq.backends.local import LocalBackend
from llmpq.errors import StageLostError
from llmpq.generation import SamplingParams
from tests.conftest import CommandLine

TWO = ("--prompt", "def main(", "--prompt", "import os", "--max-new-tokens", 6)


@pytest.fixture(scope="module")
def texts(mixed_out: Path) -> list[str]:
    return load(mixed_out).generate(["def main(", "import os"], 6)


def test_pieces_of_all_continuations_are_streamed(cli: CommandLine, mixed_out: Path, texts: list[str]) -> None:
    outcome = cli("run", mixed_out, *TWO, "--stream")
    assert outcome.code == 0
    pieces = [json.loads(line) for line in outcome.out.splitlines()]
    assert len(pieces) > 2
    for index, text in enumerate(texts):
        assert "".join(piece["text"] for piece in pieces if piece["sequence"] == index) == text


@pytest.mark.parametrize("how", [(), ("--processes",)])
def test_verbose_tells_how_long_and_how_much_memory_loading_took(
    how: tuple[str, ...], cli: CommandLine, mixed_out: Path, texts: list[str]
) -> None:
    outcome = cli("run", mixed_out, *TWO, "--json", "--verbose", *how)
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert [one["continuation"] for one in found["generations"]] == texts
    assert len(found["stages"]) == 2 and all(stage["peak_bytes"] > 2**20 < 2**40 for stage in found["stages"])
    assert [line.split(":")[0] for line in outcome.err.splitlines() if "loaded in" in line] == ["CPU", "CPU"]


def test_what_there_was_when_a_stage_was_lost_is_printed(
    cli: CommandLine, mixed_out: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    whole = load(mixed_out).backend.generate(load(mixed_out).encode(["def main(", "import os"]), SamplingParams(6))

    def lose(*_: object) -> None:
        error = StageLostError("lost stage 1 (CPU:1 on host a): killed by SIGKILL; all stages were stopped")
        error.generated, error.ended = (whole[0].token_ids, whole[1].token_ids[:2]), (0,)
        raise error

    monkeypatch.setattr(LocalBackend, "generate", lose)
    outcome = cli("run", mixed_out, *TWO, "--json")
    first, second = json.loads(outcome.out)
    assert (outcome.code, first["continuation"], "interrupted" in first) == (1, texts[0], False)
    assert second["interrupted"] and texts[1].startswith(second["continuation"])
    assert "llmpq: lost stage 1 (CPU:1 on host a): killed by SIGKILL" in outcome.err
    assert "[interrupted]" in cli("run", mixed_out, *TWO).out


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--recover",), "add --processes"), (("--processes", "--lost-after", "0"), "give a number above 0")],
)
def test_options_that_cannot_hold_are_refused(options: tuple[str, ...], told: str, cli: CommandLine, mixed_out: Path) -> None:
    outcome = cli("run", mixed_out, *TWO, *options)
    assert outcome.code == 2 and told in outcome.err
