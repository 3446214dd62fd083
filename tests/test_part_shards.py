"""Layers of two precisions on disk and in the runtime: stored, loaded by others, lowered, quantized by GPTQ."""

from pathlib import Path
from typing import Any

import pytest
import torch

from llmpq import Batch, compile, load
from llmpq.checkpoint.loadable_engines import loadable_engines
from llmpq.checkpoint.manifest import verify
from llmpq.checkpoint.output_checks import structural_problems
from llmpq.checkpoint.quantization_config import module_precisions
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.reference import reference_model
from llmpq.checkpoint.shards import write_shards
from llmpq.export.llama_cpp import LlamaCppTarget
from llmpq.frontend.models import read_text, token_ids
from llmpq.layer_option import parse_options
from llmpq.plan import Plan
from llmpq.report.layers import layers_section
from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import dumps, loads
from tests.conftest import CommandLine
from tests.loading import load_by_transformers
from tests.tiny_checkpoint import graph, plan, save_llama
from tests.values import two_cpus

NATS = {"16": 0.0, "w8a16": 0.0001, "w4a16": 0.003}
OPTIONS = ("w4a16/w8a16", "w8a8/16", "16/w4a16", "w8a8/w4a16")
TOKENS = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(3))
RULES = ("count(w4a16/w8a8) >= 3", "count(w8a16/w4a16) >= 3", "first_layer.device != last_layer.device")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parts")
    source = save_llama(directory / "tiny")
    write_shards(directory / "out", Checkpoint.open(source), graph(), plan(OPTIONS), assets=source, build={})
    return Path(directory / "out")


def test_every_linear_has_the_precision_of_its_part(out: Path) -> None:
    found = module_precisions(Checkpoint.open(out).config)
    for layer, option in enumerate(OPTIONS):
        attention, _, mlp = option.partition("/")
        for name, expected in (("self_attn.q_proj", attention), ("self_attn.o_proj", attention), ("mlp.down_proj", mlp)):
            path = f"model.layers.{layer}.{name}"
            assert (found[path].name if path in found else "16") == expected
    assert list(structural_problems(out)) == []


def test_a_part_at_another_precision_than_the_plan_says_is_told(out: Path, tmp_path: Path) -> None:
    changed = tmp_path / "out"
    changed.mkdir()
    for file in out.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    text = (changed / "plan.json").read_text()
    (changed / "plan.json").write_text(text.replace('"w8a8/w4a16"', '"w8a8/w8a16"'))
    problems = list(structural_problems(changed))
    assert len(problems) == 3 and all("is w4a16, plan.json says w8a8/w8a16" in problem for problem in problems)


def test_transformers_loads_it_and_agrees_with_the_reference(out: Path) -> None:
    with torch.no_grad():
        loaded, told = load_by_transformers(out)
        found, wanted = (model(TOKENS).logits.float().log_softmax(-1) for model in (loaded, reference_model(out)))
    assert not told
    assert float((found - wanted).abs().max()) < 0.1


def test_vllm_loads_it_and_llama_cpp_is_refused_in_one_line() -> None:
    engines = loadable_engines(graph(), plan(OPTIONS))
    assert engines["transformers"] is True
    (refusal,) = LlamaCppTarget().unsupported(plan(("w4a16/16",) * 4, cuts=()), graph())
    assert "one type for a layer" in refusal and "--granularity layer" in refusal


def test_the_report_says_which_part_has_which_precision() -> None:
    page = str(layers_section(plan(OPTIONS)))
    assert "w4a16/w8a16: 4-bit weights in the attention, 8-bit weights in the mlp" in page


@pytest.fixture(scope="module")
def compiled_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, its layers at two precisions each, by GPTQ on a short text."""
    folder = tmp_path_factory.mktemp("gptq")
    text = folder / "calibrate.txt"
    text.write_text(read_text("calibrate")[0][:3000])
    compile(
        "demo",
        two_cpus(),
        Batch(2, 16, 8),
        out=folder / "out",
        precisions=("w4a16/w8a8", "w8a16/w4a16", "w8a16"),
        constraints=RULES,
        indicator="prior",
        calibration=text,
        quality_check=False,
        max_ppl_increase=10.0,
    )
    return folder / "out"


def test_a_compiled_model_of_two_precisions_a_layer_verifies(compiled_out: Path) -> None:
    verify(compiled_out)
    compiled = load(compiled_out)
    assert compiled.plan.options.count("w4a16/w8a8") >= 3 and len(compiled.plan.stages) == 2
    assert compiled.plan.precisions == ("w4a16/w8a8", "w8a16/w4a16", "w8a16")


def test_the_stages_compute_what_the_reference_does(compiled_out: Path) -> None:
    compiled = load(compiled_out).reference()
    ids = token_ids(compiled.tokenizer, read_text("report")[0])[:48]
    model: Any = reference_model(compiled_out)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    torch.testing.assert_close(compiled.log_probs(ids), wanted, rtol=0, atol=2e-3)


def test_plan_chooses_mixtures_at_granularity_part(cli: CommandLine, tmp_path: Path) -> None:
    options = parse_options("16,w8a16,w4a16", "part")
    row = tuple(5 * NATS[each.of("attention").name] + NATS[each.of("mlp").name] for each in options)
    table = SensitivityTable(tuple(each.name for each in options), (row,) * 12, "by hand", "by hand")
    (tmp_path / "table.json").write_text(dumps(table))
    (tmp_path / "cluster.yaml").write_text("name: small\ndevices: [{type: CPU, memory: 5 MiB}]\n")
    head = ("plan", "demo", "--cluster", tmp_path / "cluster.yaml", "--batch-size", "2", "--prompt-len", "16", "--gen-len", "8")
    given = ("--precisions", "16,w8a16,w4a16", "--sensitivity", tmp_path / "table.json", "--theta", "1e6")
    outcome = cli(*head, *given, "--granularity", "part", "--json")
    assert outcome.code == 0, outcome.err
    plan = loads(Plan, outcome.out, "stdout")
    assert "w8a16/w4a16" in plan.precisions and len(plan.precisions) <= 8
    assert any("/" in option for option in plan.options)
    assert "/" in cli(*head, *given, "--granularity", "part").out
    refused = cli(*head, "--granularity", "tensor")
    assert refused.code == 2 and "granularity 'tensor' is unknown; known are layer, part" in refused.err
