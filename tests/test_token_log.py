"""Token logs: a run that was ended goes on from its file, on the same devices or others."""

from dataclasses import replace
from pathlib import Path

import pytest

from llmpq import load
from llmpq.backends.local import LocalBackend
from llmpq.errors import InputError
from llmpq.generation import SamplingParams
from llmpq.runtime.job import Job, generate_job
from llmpq.runtime.token_log import token_log
from tests.conftest import CommandLine
from tests.test_engine import MANY
from tests.toys import toy_graph, toy_plan, toy_stages

SAMPLED = SamplingParams(6, temperature=1.0, seed=3, log_probs=True)


def backend(cuts: tuple[int, ...]) -> LocalBackend:
    return LocalBackend(toy_plan(cuts, 1, 2), toy_graph(), toy_stages(cuts).__getitem__)


@pytest.mark.parametrize("kept_lines", [0, 1, 2, 30, 66])
def test_what_the_file_holds_is_not_generated_again(kept_lines: int, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    whole = backend((1, 3)).generate(MANY, SAMPLED, resume=path)
    assert whole == backend((1, 3)).generate(MANY, SAMPLED)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 6 * len(MANY)
    path.write_text("".join(lines[:kept_lines]) + "[3, 1")  # the last line was cut off
    if kept_lines == 0:
        path.unlink()
    streamed: list[tuple[int, int]] = []
    again = backend((2, 2)).generate(MANY, SAMPLED, lambda *token: streamed.append(token), path)
    assert [one.token_ids for one in again] == [one.token_ids for one in whole]
    for one, other in zip(again, whole):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    assert len(streamed) == 6 * len(MANY) - max(0, kept_lines - 1)
    assert len(path.read_text().splitlines()) == len(lines)


@pytest.mark.parametrize(
    ("text", "told"),
    [("something else\n", "holds no tokens of these prompts"), ("", "expected sequence, token and log-probability")],
)
def test_a_file_of_another_job_is_left_alone(text: str, told: str, tmp_path: Path) -> None:
    path, job = tmp_path / "tokens", generate_job(MANY, SAMPLED)
    if not text:
        with token_log(path, job):
            pass
        text = path.read_text() + "no json\n"
    path.write_text(text)
    with pytest.raises(InputError, match=told), token_log(path, job):
        pass
    assert path.read_text() == text
    with pytest.raises(InputError, match="holds no tokens"), token_log(path, Job("generate", ((1,),), SAMPLED)):
        pass


def test_a_run_goes_on_without_a_device(mixed_out: Path, tmp_path: Path) -> None:
    """In fp32, where micro-batches of other sizes give the same tokens; layers of both files run in one stage."""
    compiled = load(mixed_out).reference()
    free = replace(compiled, program=replace(compiled.program, plan=replace(compiled.plan, constraints=())))
    prompts, path = ["def main(", "import os"], tmp_path / "tokens"
    whole = compiled.generate(prompts, 6, resume=path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]))
    without = free.without("CPU:0")
    assert [stage.device for stage in without.plan.stages] == ["CPU:1"] and without.plan.options == compiled.plan.options
    assert without.generate(prompts, 6, resume=path) == whole
    assert len(path.read_text().splitlines()) == len(lines)


def test_the_command_says_why_there_is_no_plan_without_a_device(mixed_out: Path, cli: CommandLine) -> None:
    outcome = cli("run", mixed_out, "--prompt", "x", "--without", "CPU:0")
    assert outcome.code == 3 and "first_layer.device != last_layer.device" in outcome.err
