"""The command line: help, JSON, what goes to which stream, and readers that leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmpq
from llmpq.checkpoint.manifest import verify
from llmpq.checkpoint.output_checks import read_plan
from llmpq.cli import COMMANDS
from llmpq.compiler import plan
from llmpq.plan import Plan
from llmpq.serialize import loads, to_json
from llmpq.workload import Batch
from tests.command_line import CLUSTER, PLANNED, environment, process
from tests.conftest import CommandLine

HEAVY = ("torch", "transformers", "z3", "highspy")
IMPORTED = f"""
import sys
from llmpq.cli import main
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("plan", "--help"), ("compile", "-h"), ("run", "-h"), ("--version",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    outcome = process(sys.executable, "-c", IMPORTED, *arguments)
    assert (outcome.code, outcome.err) == (0, "imported:\n")
    assert outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_a_line_in_the_list(command: str, cli: CommandLine) -> None:
    outcome = cli(command, "-h")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: llmpq {command} ")
    assert cli(command, "--help").out == outcome.out
    assert f"  {command} " in cli("--help").out and COMMANDS[command][:40] in cli("--help").out


def test_without_a_command_the_help_is_shown_on_stderr(cli: CommandLine) -> None:
    outcome = cli()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == cli("--help").out


def test_every_public_name_is_what_it_says() -> None:
    found = {name: getattr(llmpq, name) for name in llmpq.__all__}
    types = {"Batch", "Cluster", "CompiledModel", "Plan", "Serving"}
    assert {name for name, value in found.items() if isinstance(value, type)} == types
    assert all(callable(value) and value.__name__ == name for name, value in found.items())
    with pytest.raises(AttributeError, match="module 'llmpq' has no attribute 'compyle'"):
        _ = llmpq.compyle


def test_plan_prints_the_plan_as_json(cli: CommandLine) -> None:
    outcome = cli("plan", "demo", *PLANNED, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    made = plan("demo", CLUSTER, Batch(8, 64, 32), indicator="prior").plan
    assert loads(Plan, outcome.out) == made


def test_compile_prints_the_plan_that_it_wrote_as_json(cli: CommandLine, tmp_path: Path) -> None:
    outcome = cli("compile", "demo", *PLANNED, "--json", "-o", tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert loads(Plan, outcome.out) == read_plan(tmp_path / "out")


def test_verify_prints_files_and_engines_as_json(cli: CommandLine, mixed_out: Path) -> None:
    outcome = cli("verify", mixed_out, "--json")
    manifest = verify(mixed_out)
    assert (outcome.code, outcome.err) == (0, "")
    devices = [stage.device for stage in read_plan(mixed_out).stages]
    assert json.loads(outcome.out) == {
        "files": to_json(dict(manifest.files)),
        "engines": to_json(dict(manifest.engines)),
        "smoke_test": devices,
    }


def test_run_prints_prompts_and_continuations_as_json(cli: CommandLine, mixed_out: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("import os\nclass Ω:\n")
    prompts = ["def main(", "import os", "class Ω:"]
    outcome = cli(
        "run", mixed_out, "--prompt", prompts[0], "--prompts", tmp_path / "prompts.txt", "--json", "--max-new-tokens", 6
    )
    assert (outcome.code, outcome.err) == (0, "")
    continuations = llmpq.load(mixed_out).generate(prompts, max_new_tokens=6)
    expected = [{"prompt": prompt, "continuation": text} for prompt, text in zip(prompts, continuations, strict=True)]
    assert json.loads(outcome.out) == expected


def test_run_prints_several_prompts_one_after_the_other(cli: CommandLine, mixed_out: Path) -> None:
    outcome = cli("run", mixed_out, "--prompt", "def f(", "--prompt", "import ", "--max-new-tokens", 4)
    first, second = llmpq.load(mixed_out).generate(["def f(", "import "], max_new_tokens=4)
    line = "-" * 20
    assert outcome.out == f"def f({first}\n{line}\nimport {second}\n{line}\n"


def test_run_streams_whole_characters_and_nothing_is_lost(cli: CommandLine, mixed_out: Path) -> None:
    options = ("--max-new-tokens", 24, "--temperature", 3, "--seed", 1, "--ignore-eos")
    outcome = cli("run", mixed_out, "--prompt", "# Ω", *options)
    sampled = llmpq.load(mixed_out).generate("# Ω", 24, temperature=3.0, seed=1, stop_at_eos=False)
    assert outcome.out == f"# Ω{sampled[0]}\n"


def test_eval_prints_its_result_as_json_and_for_people(cli: CommandLine, mixed_out: Path) -> None:
    arguments = ("eval", mixed_out, "--text", "report", "--max-tokens", 300)
    found = json.loads(cli(*arguments, "--json").out)
    assert {"cross_entropy", "perplexity", "tokens", "kl", "top1", "increase"} < set(found) and found["tokens"] == 299
    assert found["cross_entropy_error"] > 0
    outcome = cli(*arguments)
    assert outcome.err == "" and f"cross entropy {found['cross_entropy']:.4f} ± " in outcome.out
    assert "/out on report: " in outcome.out and outcome.out.count("\n") == 1


@pytest.mark.parametrize("command", ["passes", "backends", "devices"])
def test_the_lists_are_printed_as_json_and_as_tables(command: str, cli: CommandLine) -> None:
    found = json.loads(cli(command, "--json").out)
    names = [row["name"] for row in (found["types"] if command == "devices" else found)]
    table = cli(command).out
    assert len(names) >= 2 and all(name in table for name in names)


def test_the_program_after_a_pass_is_printed_on_stderr(cli: CommandLine) -> None:
    quiet, told = cli("plan", "demo", *PLANNED), cli("plan", "demo", *PLANNED, "--print-after", "assign-joint")
    assert told.out == quiet.out and quiet.err == ""
    assert told.err.startswith("== after assign-joint\n") and told.err.count("== after") == 1
    everything = cli("plan", "demo", *PLANNED, "--print-after", "all")
    assert everything.err.count("== after") == 3


def test_a_path_with_brackets_is_printed_as_it_is(cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out[bold]:smile:"
    assert f"written         {out}; next: llmpq verify {out}" in cli("compile", "demo", *PLANNED, "-o", out).out


def test_the_same_command_writes_the_same_bytes(cli: CommandLine, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert cli("compile", "demo", *PLANNED, "-o", tmp_path / name).code == 0
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name != "build.json"}
        for name in ("one", "two")
    )
    assert first == second and len(first) > 5


def test_sensitivity_of_a_file_replaces_the_indicator(cli: CommandLine, tmp_path: Path) -> None:
    rows = [[0.0, 1.0, 1.0, 0.0]] * 12
    table = {"options": ["16", "w8a8", "w8a16", "w4a16"], "rows": rows, "indicator": "hand", "provenance": "by hand"}
    (tmp_path / "table.json").write_text(json.dumps(table))
    outcome = cli("plan", "demo", *PLANNED, "--sensitivity", tmp_path / "table.json", "--json")
    made = loads(Plan, outcome.out)
    assert set(made.options) <= {"16", "w4a16"} and made.quality.provenance == "by hand"


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_is_gone_is_no_reason_to_complain(form: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "llmpq", "passes", *form]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment(), text=True, timeout=120, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_plan_can_be_piped_into_head() -> None:
    words = " ".join(["plan", "demo", *PLANNED])
    outcome = process("bash", "-c", f"'{sys.executable}' -m llmpq {words} | head -1")
    assert (outcome.out, outcome.err) == ("demo: 2 stages, bfloat16\n", "")
