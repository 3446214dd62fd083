"""Bad input on the command line: one clear line on stderr, the documented exit code, nothing half-written."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import CLUSTER, PLANNED, ROOT, environment, llmpq
from tests.conftest import CommandLine

PLAN = ("plan", "demo", *PLANNED)
C = ("--cluster", str(CLUSTER))
SMALL = "{type: CPU, memory: 3 MiB, host: a}"

# arguments -> what the line says, in order
WRONG: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no such model": (
        ("plan", "opt-30", *C),
        ("no directory, hub id or bundled configuration named 'opt-30'", "mean 'opt-30b'?"),
    ),
    "no demo": (("compile", "demoo", *C, "-o", "out"), ("'demoo'", "did you mean 'demo'?")),
    "model without weights": (("compile", "opt-30b", *C, "-o", "out"), ("'opt-30b' is a configuration without weights",)),
    "no such cluster file": (("plan", "demo", "-c", "none.yaml"), ("cluster file none.yaml does not exist",)),
    "unknown device": (("plan", "demo", "-c", "2xT5"), ("found device type 'T5'", "did you mean T4?")),
    "unsupported precision": ((*PLAN, "--precisions", "16,w5a16"), ("precision 'w5a16' is unknown; known are 16, w8a8",)),
    "bad constraint": ((*PLAN, "--constraint", "layers[0:2].bitz >= 8"), ("column 13: found 'bitz', expected one of .bits",)),
    "constraint beyond the model": ((*PLAN, "--constraint", "layers[99].bits >= 8"), ("column 1: layer 99 is unknown",)),
    "two quality options": (
        (*PLAN, "--max-ppl-increase", "0.1", "--theta", "1"),
        ("--max-ppl-increase and --theta exclude each other; give one quality option",),
    ),
    "negative quality": ((*PLAN, "--sensitivity-budget", "-1"), ("--sensitivity-budget is -1.0; it must be a finite number, 0",)),
    "quality in per cent": ((*PLAN, "--max-ppl-increase", "2%"), ("'2%' is not a valid float; write 2 % as 0.02",)),
    "no such directory": (("plan", "./none", *C), ("no directory './none', expected that of a Hugging Face model",)),
    "a model's file": (("plan", str(ROOT / "README.md"), *C), ("README.md' is a file, expected the directory", "give '")),
    "a profile of another kind": ((*PLAN, "--profile", str(CLUSTER)), ("not JSON", "`llmpq profile MODEL -o FILE` writes")),
    "an output that is taken": (("compile", "demo", *C, "-o", str(ROOT / "docs")), ("docs: exists and is not a directory that",)),
    "serve of nothing": (("serve", "none"), ("none: is not a compiled model; `llmpq compile MODEL",)),
    "export of nothing": (
        ("export", "none", "--to", "vllm", "-o", "x"),
        ("none: is not a compiled model; `llmpq compile MODEL",),
    ),
    "validate of nothing": (("validate", "none"), ("none: is not a compiled model; `llmpq compile MODEL",)),
    "endless quality": ((*PLAN, "--max-ppl-increase", "inf"), ("--max-ppl-increase is inf; it must be a finite number",)),
    "negative size": ((*PLAN, "--batch-size", "-8"), ("workload: batch_size is -8; it must be at least 1",)),
    "no tokens": ((*PLAN, "--gen-len", "0"), ("workload: gen_len is 0; it must be at least 1",)),
    "not a number": ((*PLAN, "--prompt-len", "many"), ("Invalid value for '--prompt-len': 'many' is not a valid integer",)),
    "longer than the model": (
        (*PLAN, "--prompt-len", "1000"),
        ("prompt_len 1000 + gen_len 32 needs 1031 positions; demo has 1024",),
    ),
    "unknown engine": ((*PLAN, "--engine", "vlm"), ("engine 'vlm' is unknown; known are local", "did you mean 'vllm'?")),
    "unknown pass": ((*PLAN, "--assign", "assign-jint"), ("pass 'assign-jint' is unknown", "did you mean 'assign-joint'?")),
    "a pass without a plan": (
        (*PLAN, "--assign", "derive-costs"),
        ("--assign 'derive-costs' makes no plan; choose one of assign-",),
    ),
    "no pass": ((*PLAN, "--assign", ""), ("the pipeline is empty",)),
    "unknown indicator": ((*PLAN, "--indicator", "hessien"), ("indicator 'hessien' is unknown; known are auto",)),
    "print after nothing": ((*PLAN, "--print-after", "assign-jont"), ("no such pass", "did you mean 'assign-joint'?")),
    "negative gap": ((*PLAN, "--gap", "-1"), ("--gap is -1.0; it must be a finite number, 0 or more",)),
    "no time": ((*PLAN, "--time-limit", "0"), ("--time-limit is 0.0; it must be a finite number of seconds above 0",)),
    "no such sensitivity": ((*PLAN, "--sensitivity", "none.json"), ("sensitivity file none.json does not exist",)),
    "no such calibration": (("plan", "demo", *C, "--calibration", "none.txt"), ("text 'none.txt' is neither a file nor",)),
    "unknown option": ((*PLAN, "--batch", "8"), ("No such option '--batch'", "--batch-size")),
    "unknown command": (("plam",), ("no command 'plam'; `llmpq --help` lists them; did you mean 'plan'?",)),
    "no cluster": (("plan", "demo"), ("Missing option '--cluster'",)),
    "run of nothing": (("run", "none", "--prompt", "x"), ("none: is not a compiled model; `llmpq compile MODEL",)),
    "verify of nothing": (("verify", "none"), ("none: is not a compiled model; `llmpq compile MODEL",)),
    "no prompt": (("run", "none"), ("no prompt was given; use --prompt TEXT or --prompts FILE",)),
    "no prompts file": (("run", "none", "--prompts", "none.txt"), ("prompts file none.txt does not exist",)),
    "eval of nothing": (("eval", "none", "--text", "report"), ("no directory, hub id or bundled configuration named 'none'",)),
    "eval of no text": (("eval", "demo", "--text", "reprot"), ("text 'reprot' is neither", "did you mean 'report'?")),
    "eval without a window": (("eval", "demo", "--text", "report", "--window", "0"), ("Invalid value for '--window'",)),
    "eval of less than nothing": (
        ("eval", "demo", "--text", "report", "--max-tokens", "-5"),
        ("Invalid value for '--max-tokens'",),
    ),
    "window beyond the model": (
        ("eval", "demo", "--text", "report", "--window", "4096"),
        ("--window 4096 is more", "at most 1024"),
    ),
}


def one_line(err: str, *said: str) -> None:
    """`err` is a single line of llmpq's that says these things in order; below it may stand a constraint with a caret."""
    lines = err.splitlines()
    assert err.startswith("llmpq: ") and err.endswith("\n"), err
    assert len(lines) == 1 or (len(lines) == 3 and lines[2].strip() == "^" and "constraint" in lines[0]), err
    position = 0
    for part in said:
        assert part in err[position:], f"{part!r} is not said (in this order) in {err!r}"
        position = err.index(part, position) + len(part)


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_told_in_one_line(what: str, cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, said = WRONG[what]
    monkeypatch.chdir(tmp_path)
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, *said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devices:\n  - type: CPU\n    memory: [1\n", ("line 4, column 1: not YAML",)),
        ("devices:\n  - type: CPU\n    memry: 1 GiB\n", ("line 3, column 5", "unknown key 'memry'", "did you mean 'memory'?")),
        ("devices:\n  - {type: T5}\n", ("line 2", "found device type 'T5'")),
        ("", ("the file is empty",)),
        ("devices:\n  - {type: CPU, memory: -1 GiB}\n", ("line 2", "devices[0].memory", "-1 GiB")),
    ],
)
def test_a_bad_cluster_file_is_told_with_its_line(text: str, said: tuple[str, ...], cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    outcome = cli("plan", "demo", "--cluster", tmp_path / "cluster.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, "cluster.yaml", *said)


@pytest.mark.parametrize(
    "arguments",
    [("run", "none", "--prompts"), (*PLAN, "--sensitivity"), ("plan", "demo", "--cluster"), ("eval", "demo", "--text")],
)
def test_a_file_that_is_no_text_is_named(arguments: tuple[str, ...], cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe\x00\x81")
    outcome = cli(*arguments, tmp_path / "noise.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, "noise.yaml", "UTF-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("simulate", "demo", "--gantt"),
        ("profile", "demo", "-o"),
        ("sensitivity", "demo", "-o"),
        ("solve", "problem.json", "--certificate"),
        ("validate", "out", "-o"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    arguments: tuple[str, ...], cli: CommandLine, tmp_path: Path
) -> None:
    outcome = cli(*arguments, tmp_path / "none" / "file.json")
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, "file.json cannot be written: there is no folder", "none")


def test_an_empty_prompts_file_has_no_prompt(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("")
    outcome = cli("run", "none", "--prompts", tmp_path / "prompts.txt")
    assert outcome.code == 2
    one_line(outcome.err, "no prompt was given")


def test_an_empty_calibration_text_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    outcome = cli("plan", "demo", *C, "--calibration", tmp_path / "empty.txt")
    assert outcome.code == 2
    one_line(outcome.err, "calibration text empty has 0 tokens; at least 2 are needed")


def test_a_sensitivity_table_of_another_model_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    table = {"options": ["16", "w8a8"], "rows": [[0.0, 0.1]], "indicator": "variance", "provenance": "by hand"}
    (tmp_path / "table.json").write_text(json.dumps(table))
    outcome = cli(*PLAN, "--sensitivity", tmp_path / "table.json")
    assert outcome.code == 2
    one_line(outcome.err, "has 1 layers and options 16, w8a8; expected 12 layers and 16, w8a8, w8a16, w4a16")


def test_a_cluster_that_is_too_small_is_exit_3_with_devices_and_bytes(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(f"devices:\n  - {SMALL}\n  - {SMALL}\n")
    outcome = cli("compile", "demo", "-c", tmp_path / "small.yaml", *PLANNED[2:], "-o", tmp_path / "out")
    assert outcome.code == 3
    one_line(outcome.err, "no plan exists: CPU:0 is ", "iB short", "CPU:1 is ", "iB short")
    assert "Any one of these makes it fit" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_a_quality_target_that_cannot_be_met_is_exit_3_when_it_was_asked_for(cli: CommandLine) -> None:
    outcome = cli(*PLAN, "--sensitivity-budget", "0")
    assert outcome.code == 3
    assert "--max-ppl-increase" in outcome.out
    one_line(outcome.err, "no plan exists", "short at a quality budget of 0 nats per token")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_default_quality_target_that_cannot_be_met_is_a_warning(
    form: tuple[str, ...], cli: CommandLine, tmp_path: Path
) -> None:
    table = {
        "options": ["16", "w8a8", "w8a16", "w4a16"],
        "rows": [[0.0, 1.0, 1.0, 1.0]] * 12,
        "indicator": "variance",
        "provenance": "by hand",
    }
    (tmp_path / "table.json").write_text(json.dumps(table))
    outcome = cli(*PLAN, "--sensitivity", tmp_path / "table.json", *form)
    assert outcome.code == 0 and "CPU:0" in outcome.out
    one_line(outcome.err, "notice: the default quality target of 0.0198 nats per token cannot be met", "least sensitivity")


def test_an_output_directory_that_is_not_ours_is_left_alone_and_told_at_once(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years")
    outcome = cli("compile", "demo", *PLANNED, "--print-after", "all", "-o", tmp_path / "mine")
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, "mine: exists and is not a directory that llmpq wrote; choose another output directory or remove it")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


@pytest.fixture
def copy(mixed_out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixed_out, tmp_path / "out"))


SHARD = "model-stage-00001-of-00002.safetensors"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("harm", "told"), [(truncate, "truncated"), (alter, "altered"), (Path.unlink, "missing")])
def test_verify_names_the_shard_that_is_damaged(harm: object, told: str, cli: CommandLine, copy: Path) -> None:
    assert callable(harm)
    harm(copy / SHARD)
    outcome = cli("verify", copy)
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, f"{copy / SHARD}: {told}", "compile again or copy the file again")


def test_run_tells_a_plan_of_another_model(cli: CommandLine, copy: Path) -> None:
    plan = json.loads((copy / "plan.json").read_text())
    del plan["pipelines"][0]["stages"][-1]
    (copy / "plan.json").write_text(json.dumps(plan))
    outcome = cli("run", copy, "--prompt", "x")
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, f"{copy / 'plan.json'}: places ", "layers of demo, the model beside it has 12", "copy the file again")


@pytest.mark.parametrize("how", [(), ("--processes",)])
@pytest.mark.parametrize(("harm", "told"), [(truncate, "truncated"), (alter, "altered"), (Path.unlink, "missing")])
def test_run_names_the_shard_that_is_damaged(how: tuple[str, ...], harm: object, told: str, cli: CommandLine, copy: Path) -> None:
    assert callable(harm)
    harm(copy / SHARD)
    outcome = cli("run", copy, "--prompt", "x", *how)
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, f"{copy / SHARD}: {told}")


@pytest.mark.parametrize("how", [(), ("--processes",)])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--max-new-tokens", "0"), "max_new_tokens is 0; it must be at least 1"),
        (("--max-new-tokens", "5000"), "sequence 0 needs 5000 positions; the model has 1024"),
        (("--top-p", "3"), "top_p is 3.0; it must be above 0"),
    ],
)
def test_run_says_what_it_cannot_generate_before_it_prints_anything(
    how: tuple[str, ...], options: tuple[str, ...], told: str, cli: CommandLine, mixed_out: Path
) -> None:
    outcome = cli("run", mixed_out, "--prompt", "x", *options, *how)
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, told)


def model_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "llmpq" / "data" / "models" / "demo", tmp_path / "model"))


@pytest.mark.parametrize("command", ["plan", "compile", "eval"])
def test_damaged_weights_of_a_model_are_named(command: str, cli: CommandLine, tmp_path: Path) -> None:
    model = model_copy(tmp_path)
    truncate(model / "model.safetensors")
    more = {"plan": C, "compile": (*C, "-o", str(tmp_path / "out")), "eval": ("--text", "report")}[command]
    outcome = cli(command, model, *more)
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, "model.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_not_compiled_again(cli: CommandLine, mixed_out: Path, tmp_path: Path) -> None:
    outcome = cli("compile", mixed_out, *C, "-o", tmp_path / "again")
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, "already quantized; compile the original 16-bit model")


def test_models_that_cut_a_text_differently_are_not_compared(cli: CommandLine, tmp_path: Path) -> None:
    model = model_copy(tmp_path)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    outcome = cli("eval", "demo", "--text", "report", "--against", model)
    assert outcome.code == 2
    one_line(outcome.err, "cut the text into different tokens; a divergence needs one tokenizer")


HELD = """
import signal, sys
from llmpq.checkpoint import shards
from llmpq.cli import main

def held(*arguments):
    written = write_stage(*arguments)
    print("a stage is written", flush=True)
    signal.pause()
    return written

write_stage, shards.write_stage = shards.write_stage, held
main()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compile_leaves_nothing_behind_and_an_earlier_output_untouched(
    sent: signal.Signals, mixed_out: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(mixed_out, tmp_path / "out"))
    command = [sys.executable, "-c", HELD, "compile", "demo", *PLANNED, "-o", str(out)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a stage is written\n"
        partial, finished = sorted(path.name for path in tmp_path.iterdir())
        assert partial.startswith(".out.partial-") and finished == "out"
        process.send_signal(sent)
        rest, err = process.communicate(timeout=120)
    assert (process.returncode, rest) == (130, "")
    assert err == "\nllmpq: interrupted; nothing half-written was left behind\n"  # on a line below the terminal's ^C
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {p.name: p.read_bytes() for p in mixed_out.iterdir()}


def test_debug_adds_the_traceback_and_keeps_the_exit_code(cli: CommandLine) -> None:
    outcome = cli("--debug", "plan", "opt-30", *C)
    assert outcome.code == 2 and outcome.err.startswith("Traceback (most recent call last):")
    assert outcome.err.splitlines()[-1].startswith("llmpq: no directory, hub id or bundled configuration named 'opt-30'")
    assert "Traceback" not in cli("plan", "opt-30", *C).err


def test_bad_input_of_a_process_is_the_same_line_and_code(tmp_path: Path) -> None:
    outcome = llmpq("compile", "demo", *PLANNED, "--batch-size", "0", "-o", "out", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    one_line(outcome.err, "workload: batch_size is 0; it must be at least 1")
    assert list(tmp_path.iterdir()) == []
