"""The longest context and the largest batch: as trying every size finds them, and how they are told."""

import json
from dataclasses import replace

import pytest

from llmpq.errors import InfeasibleError, TimeLimitError
from llmpq.passmanager import parse_pipeline, run_passes
from llmpq.planning import limits
from llmpq.planning.largest import first, largest
from llmpq.planning.limits import choices, max_batch, max_context
from llmpq.program import Program, Target
from llmpq.workload import Batch, with_length
from tests.command_line import CLUSTER
from tests.conftest import CommandLine
from tests.values import llama_graph, program, two_cpus

PREPARE = "derive-costs,estimate-sensitivity{indicator=prior}"


def ready(memory: str = "1200 KiB", workload: Batch | None = None) -> Program:
    plain = program(llama_graph(tied=False), two_cpus(memory, memory), workload or Batch(4, 32, 16), "16,w4a16")
    return run_passes(plain, parse_pipeline(PREPARE))


def has_plan(choice: Program, field: str, value: int) -> bool:
    """By the whole of planning, from scratch."""
    request = replace(choice.request, workload=with_length(choice.request.workload, field, value), gap=0.5)
    try:
        run_passes(replace(choice, request=request, costs=None, plan=None), parse_pipeline("derive-costs,assign-joint"))
    except InfeasibleError:
        return False
    return True


def test_the_largest_batch_has_a_plan_and_no_larger_one_has() -> None:
    for choice, limit in zip(choices(ready()), max_batch(ready()), strict=True):
        assert limit.largest is not None
        assert has_plan(choice, "batch_size", limit.largest)
        assert not any(has_plan(choice, "batch_size", limit.largest + more) for more in (1, 2, 3, 8))
        assert all(reason.endswith(" short") for reason in limit.limited_by)


def test_the_longest_context_has_a_plan_and_one_token_more_has_not() -> None:
    workload = Batch(6, 32, 16)
    for choice, limit in zip(choices(ready(workload=workload)), max_context(ready(workload=workload)), strict=True):
        assert limit.largest is not None
        prompt = limit.largest - workload.gen_len
        assert has_plan(choice, "prompt_len", prompt)
        assert not has_plan(choice, "prompt_len", prompt + 1)


def test_what_is_not_decided_in_time_is_no_limit_that_was_found_but_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(asked: Program) -> bool:
        batch = asked.request.workload
        assert isinstance(batch, Batch)
        if batch.batch_size > 3:
            raise TimeLimitError("too long")
        return True

    monkeypatch.setattr(limits, "fits", fits)
    for limit in max_batch(ready()):
        assert (limit.largest, limit.limited_by) == (3, ("whether one more fits was not decided in 5 s",))


def test_a_context_is_limited_by_the_positions_of_the_model() -> None:
    for limit in max_context(ready("64 MiB")):
        assert limit.largest == 1025  # the last token has no position
        assert limit.limited_by == ("the model has 1024 positions",)


def test_each_precision_alone_all_together_and_within_the_target() -> None:
    found = max_batch(ready())
    assert [limit.precisions for limit in found] == [("16",), ("w4a16",), ("16", "w4a16"), ("16", "w4a16")]
    assert [limit.budget is None for limit in found] == [True, True, True, False]
    sixteen, four, mixed, within = (limit.largest or 0 for limit in found)
    assert sixteen <= within <= mixed
    assert four <= mixed
    assert found[3].sensitivity is not None and found[3].sensitivity <= Target().budget  # type: ignore[operator]


def test_what_never_fits_is_told_with_the_bytes_short() -> None:
    for limit in max_batch(ready("200 KiB")):
        assert limit.largest is None
        assert limit.sensitivity is None
        assert "short" in limit.limited_by[0]


@pytest.mark.parametrize("threshold", [-1, 0, 1, 5, 17, 40])
def test_largest_and_first_ask_few_questions_and_find_the_edge(threshold: int) -> None:
    questions: list[int] = []

    def holds(value: int) -> bool:
        questions.append(value)
        return value <= threshold

    assert largest(holds, 0, 30) == (None if threshold < 0 else min(threshold, 30))
    assert len(questions) <= 12
    items = list(range(30))
    assert first(lambda value: value > threshold, items) == (threshold + 1 if threshold + 1 < 30 else None)


@pytest.mark.parametrize("command", ["max-context", "max-batch"])
def test_the_commands_print_a_table_and_json(command: str, cli: CommandLine) -> None:
    arguments = (
        command,
        "demo",
        "-c",
        CLUSTER,
        "--prompt-len",
        "64",
        "--gen-len",
        "32",
        "--batch-size",
        "8",
        "--indicator",
        "prior",
    )
    table, as_json = cli(*arguments, "--precisions", "16,w4a16"), cli(*arguments, "--precisions", "16,w4a16", "--json")
    assert (table.code, as_json.code) == (0, 0)
    limits = json.loads(as_json.out)["limits"]
    assert len(limits) == 4
    assert str(limits[-1]["largest"]) in table.out


def test_a_serving_workload_is_refused_with_the_remedy(cli: CommandLine) -> None:
    outcome = cli("max-batch", "demo", "-c", CLUSTER, "--rate", "1", "--indicator", "prior")
    assert outcome.code == 2
    assert "leave out --rate" in outcome.err
