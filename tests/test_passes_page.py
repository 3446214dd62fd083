"""docs/passes.md: its table is the registry, its pass runs, changes the output as it says, and stays with the model."""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import pytest
import torch

import llmpq
from llmpq.checkpoint.lowering_file import LOWERING_FILE, Lowering
from llmpq.checkpoint.manifest import Manifest, verify
from llmpq.errors import BackendError, CheckpointError, InputError, LlmpqWarning
from llmpq.passmanager import LOWERING, PASSES, load_pass, parse_pipeline
from tests.command_line import ROOT
from tests.conftest import CommandLine
from tests.values import two_cpus

PAGE = ROOT / "docs" / "passes.md"
START, END = "<!-- the table: tests/test_passes_page.py writes it -->\n", "<!-- end of the table -->"
CAP = 5.0
QUICK: dict[str, Any] = {"indicator": "prior", "quantizer": "rtn", "quality_check": False}
OPTIONS = QUICK | {"precisions": ("w8a16",), "assign": "assign-even"}


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def table() -> str:
    """A row per pass of the registry, in its order."""
    rows = ["| pass | requires | provides | options | does |", "|---|---|---|---|---|"]
    for name in PASSES:
        cls = load_pass(name)
        summary = str(import_module(cls.__module__).__doc__).partition(": ")[2].strip().rstrip(".")
        options = ", ".join(f"`{field.name}`" for field in fields(cls) if field.default is not MISSING)  # type: ignore[arg-type]
        rows.append(f"| `{name}` | {', '.join(cls.requires)} | {', '.join(cls.provides)} | {options} | {summary} |")
    return "\n".join(rows) + "\n"


def test_the_table_says_what_every_pass_does(pytestconfig: pytest.Config) -> None:
    before, found = PAGE.read_text(encoding="utf-8").split(START)
    if pytestconfig.getoption("--update-golden"):
        PAGE.write_text(f"{before}{START}{table()}{END}{found.split(END)[1]}", encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0] == table(), "run pytest --update-golden"


def test_the_page_says_the_order_of_lowering() -> None:
    assert [name for name in PASSES if name in LOWERING.split(",")] == LOWERING.split(",")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that can be imported from, with soft_cap.py as the page has it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "soft_cap.py").write_text(python_blocks()[0], encoding="utf-8")
    sys.path.insert(0, str(folder))
    invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("soft_cap", None)


@pytest.fixture(scope="module")
def outputs(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo model compiled without the pass and with it."""
    folder = tmp_path_factory.mktemp("outputs")
    for name, passes in (("plain", ()), ("capped", (f"soft_cap:SoftCapLogits{{cap={CAP}}}",))):
        llmpq.compile("demo", two_cpus(), llmpq.Batch(2, 16, 8), out=folder / name, passes=passes, **OPTIONS)
    return folder / "plain", folder / "capped"


def test_the_example_from_python_runs(home: Path) -> None:
    named: dict[str, Any] = {}
    exec(compile(python_blocks()[1], str(PAGE), "exec"), named)
    compiled: llmpq.CompiledModel = named["compiled"]
    assert float(compiled._outputs([3, 4, 5])[-1].abs().max()) <= CAP


def test_the_compiled_output_is_the_soft_cap_of_the_plain_one(outputs: tuple[Path, Path]) -> None:
    plain, capped = (llmpq.load(path).reference()._outputs(list(range(3, 40)))[-1] for path in outputs)
    assert float(plain.abs().max()) > CAP and len(llmpq.load(outputs[1]).plan.stages) == 2
    assert torch.equal(capped, CAP * (plain / CAP).tanh())


def test_what_is_generated_goes_through_the_pass(outputs: tuple[Path, Path]) -> None:
    """Log-probabilities of generation, by prefill and decode, against the soft cap of the plain model's logits."""
    plain, capped = (llmpq.load(path).reference() for path in outputs)
    ids = list(range(3, 20))
    found = torch.tensor(capped.backend.log_probs([ids[:9]], [ids[9:]])[0])
    logits = CAP * (plain._outputs(ids)[-1][0] / CAP).tanh()
    expected = logits.log_softmax(-1)[torch.arange(8, 16), torch.tensor(ids[9:])]
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-4)


def test_the_inserted_node_has_the_stage_of_the_head(outputs: tuple[Path, Path]) -> None:
    nodes = {node.name: node for node in llmpq.load(outputs[1]).graph_module.graph.nodes}
    assert nodes["soft_cap"].meta == nodes["lm_head"].meta


def test_the_shards_are_the_same_and_the_pass_is_recorded_beside_them(outputs: tuple[Path, Path]) -> None:
    plain, capped = map(verify, outputs)
    assert dict(capped.files).keys() - dict(plain.files).keys() == {LOWERING_FILE}
    shards = {name: digest for name, digest in dict(plain.files).items() if name.endswith(".safetensors")}
    assert shards.items() <= dict(capped.files).items()
    recorded = Lowering.read(outputs[1])
    assert recorded.passes == f"soft_cap:SoftCapLogits{{cap={CAP}}},{LOWERING}"
    assert recorded.own_names == ("soft_cap:SoftCapLogits",)


def test_an_exported_copy_still_runs_the_pass(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    copy = llmpq.load(llmpq.load(outputs[1]).export(tmp_path / "copy"))
    assert torch.equal(copy._outputs([3, 4, 5])[-1], llmpq.load(outputs[1])._outputs([3, 4, 5])[-1])


def test_other_engines_are_refused_since_they_would_run_without_it(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    engines = dict(Manifest.read(outputs[1]).engines)
    assert engines.pop("llmpq") is True
    reason = "would run without soft_cap:SoftCapLogits, which the model was compiled with"
    assert set(engines.values()) == {reason} and len(engines) >= 4
    with pytest.raises(BackendError, match="cannot be handed to transformers: it would run without soft_cap:SoftCapLogits"):
        llmpq.load(outputs[1]).export(tmp_path / "out", to="transformers")


def test_a_model_whose_pass_is_not_there_is_refused(outputs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path[1:])
    monkeypatch.delitem(sys.modules, "soft_cap")
    invalidate_caches()
    with pytest.raises(CheckpointError, match=r"capped: was compiled with a pass that is not here: .*PYTHONPATH"):
        llmpq.load(outputs[1])


def test_a_pass_that_has_changed_since_is_warned_of(outputs: tuple[Path, Path], home: Path) -> None:
    source = (home / "soft_cap.py").read_text(encoding="utf-8")
    try:
        (home / "soft_cap.py").write_text(source + "\n# changed\n", encoding="utf-8")
        with pytest.warns(LlmpqWarning, match="the module of pass soft_cap:SoftCapLogits has changed since"):
            llmpq.load(outputs[1])
    finally:
        (home / "soft_cap.py").write_text(source, encoding="utf-8")


def test_a_record_of_another_format_is_refused(outputs: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "out"
    shutil.copytree(outputs[1], path)
    record = path / LOWERING_FILE
    record.write_text(record.read_text().replace("llmpq-lowering-1", "llmpq-lowering-9"))
    with pytest.raises(CheckpointError, match="format 'llmpq-lowering-9', expected 'llmpq-lowering-1'"):
        Lowering.read(path)


def test_a_pass_that_no_other_process_could_find_is_refused_before_anything_is_written(home: Path) -> None:
    cls = load_pass("soft_cap:SoftCapLogits")
    local = type("SoftCapLogits", (cls,), {"__qualname__": "test.<locals>.SoftCapLogits", "__module__": "soft_cap"})
    with pytest.raises(InputError, match=r"soft_cap:test.<locals>.SoftCapLogits is defined inside a function"):
        Lowering.of((local(),))


def test_a_lowering_without_stages_is_not_compiled() -> None:
    with pytest.raises(InputError, match="ends with annotate-graph and makes no stages to run; add split-by-stage"):
        llmpq.compile(
            "demo",
            two_cpus(),
            llmpq.Batch(2, 16, 8),
            pipeline="derive-costs,estimate-sensitivity{indicator=prior},assign-even,annotate-graph",
        )


def test_the_same_by_the_command_line(home: Path, cli: CommandLine, tmp_path: Path) -> None:
    options = ("--cluster", "2xCPU", "--batch-size", 2, "--prompt-len", 16, "--gen-len", 8)
    pass_of_ours = "soft_cap:SoftCapLogits{cap=5}"
    request = ("demo", *options, "--indicator", "prior", "--extra-pass", pass_of_ours)
    done = cli("compile", *request, "--quantizer", "rtn", "--no-quality-check", "--json", "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    assert Lowering.read(tmp_path / "out").load(tmp_path / "out")[0] == parse_pipeline(pass_of_ours)[0]
    printed = cli("plan", *request, "--stop-after", "soft-cap-logits")
    assert printed.code == 0 and "soft_cap = call_function soft_cap(lm_head, 5.0)" in printed.out
