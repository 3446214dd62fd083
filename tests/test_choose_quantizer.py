"""Which quantizer a compilation gets."""

import shutil
from pathlib import Path

import pytest

from llmpq.errors import CheckpointError, InputError
from llmpq.frontend.choose_quantizer import choose_quantizer
from llmpq.frontend.models import DEMO, ModelSource, resolve
from llmpq.options import Options
from llmpq.program import Program
from llmpq.quantization.quantizers import Gptq, Quantizer, Rounding
from tests.command_line import ROOT
from tests.tiny_checkpoint import graph, plan
from tests.values import program

MODEL = ROOT / "llmpq" / "data" / "models" / DEMO


def chosen(
    source: ModelSource, name: str, text: Path | None = None, options: tuple[str, ...] = ("w4a16",) * 4
) -> tuple[Quantizer, Program]:
    assert source.directory is not None
    planned = Program(graph(), program().request, plan=plan(options))
    return choose_quantizer(source, source.directory, planned, name, text)


def test_gptq_is_the_default_and_looks_at_the_bundled_text() -> None:
    quantizer, told = chosen(resolve("demo", weights=True), Options().quantizer)
    assert isinstance(quantizer, Gptq) and quantizer.text_name == "calibrate" and len(quantizer.token_ids) > 20000
    assert told.notices == ()


def test_rounding_is_what_was_asked_for_or_all_there_is_to_do() -> None:
    demo = resolve("demo", weights=True)
    assert chosen(demo, "rtn")[0] == Rounding()
    assert chosen(demo, "auto", options=("16",) * 4)[0] == Rounding()


def test_a_model_of_the_users_is_told_that_the_bundled_text_is_not_its_own(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "mine", ignore=shutil.ignore_patterns("texts", "LICENSE*"))
    (tmp_path / "own.txt").write_text("def f(x):\n    return x + 1\n" * 200)
    source = resolve(tmp_path / "mine", weights=True)
    _, told = chosen(source, "auto")
    assert len(told.notices) == 1 and "weights are calibrated on the bundled text" in told.notices[0]
    quantizer, told = chosen(source, "gptq", tmp_path / "own.txt")
    assert isinstance(quantizer, Gptq) and quantizer.text_name == "own" and told.notices == ()


def test_without_a_tokenizer_weights_are_rounded_unless_gptq_was_asked_for(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "mine", ignore=shutil.ignore_patterns("tokenizer*", "texts"))
    source = resolve(tmp_path / "mine", weights=True)
    quantizer, told = chosen(source, "auto")
    assert quantizer == Rounding() and "rounded to nearest, not calibrated" in told.notices[0]
    with pytest.raises(CheckpointError, match="no tokenizer that transformers reads"):
        chosen(source, "gptq")


def test_a_text_of_a_few_words_does_not_calibrate(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("import this\n")
    demo = resolve("demo", weights=True)
    quantizer, told = chosen(demo, "auto", tmp_path / "short.txt")
    assert quantizer == Rounding() and "text short has" in told.notices[0]
    with pytest.raises(InputError, match=r"text short has \d+ tokens; GPTQ needs at least 256"):
        chosen(demo, "gptq", tmp_path / "short.txt")


def test_an_unknown_quantizer_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="quantizer 'awq' is unknown; known are auto, gptq, rtn"):
        Options(quantizer="awq")


def test_a_description_holds_what_decides_and_nothing_else() -> None:
    quantizer, _ = chosen(resolve("demo", weights=True), "gptq")
    assert isinstance(quantizer, Gptq)
    described = quantizer.describe()
    assert described["text_tokens"] == len(quantizer.token_ids) and described["quantizer"] == "gptq"
    assert Rounding(False).describe() != Rounding().describe()


def test_windows_are_spread_over_the_text_and_one_is_enough_for_a_short_one() -> None:
    quantizer, _ = chosen(resolve("demo", weights=True), "gptq")
    assert isinstance(quantizer, Gptq)
    windows = quantizer.windows(1024)
    tokens = quantizer.token_ids
    assert windows.shape == (32, 512) and windows[0].tolist() == list(tokens[:512])
    assert windows[-1].tolist() == list(tokens[512 * (len(tokens) // 512 - 1) :][:512])
    assert quantizer.windows(64).shape == (32, 64)
    assert Gptq(quantizer.graph_module, tokens[:300], "short").windows(1024).tolist() == [list(tokens[:300])]
