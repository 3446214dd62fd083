"""The closed loop on the demo model: what is measured, recorded, printed, refused and skipped."""

import json
from pathlib import Path

import pytest

from llmpq import Batch, compile
from llmpq.checkpoint.loss_increase import Original, losses_of
from llmpq.compiled import CompiledModel
from llmpq.errors import InputError, QualityError
from llmpq.evaluation import estimate
from llmpq.frontend.models import data_path, load_tokenizer, read_text, token_ids
from llmpq.quality_loop import read_check
from llmpq.quantization.original import load_original
from tests.conftest import CommandLine
from tests.values import two_cpus

DEMO = data_path("models", "demo")
BATCH = Batch(4, 48, 24)
CHARACTERS = 4000


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | Path]:
    """Short texts of our own, so that a check takes little time."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("tune", "report"):
        (folder / f"my-{name}.txt").write_text(read_text(name)[0][:CHARACTERS])
    return {"tune": folder / "my-tune.txt", "report": folder / "my-report.txt"}


def compiled(out: Path, texts: dict[str, str | Path], **options: object) -> CompiledModel:
    """The demo model at 4 bits unless the options say otherwise, whatever the prior predicts."""
    settings: dict[str, object] = {"indicator": "prior", "quantizer": "rtn", "precisions": ("16", "w4a16"), **texts, **options}
    made: CompiledModel = compile("demo", two_cpus("6 MiB", "5 MiB"), BATCH, out=out, **settings)  # type: ignore[arg-type]
    return made


def test_the_increase_that_is_recorded_is_the_increase_that_there_is(tmp_path: Path, texts: dict[str, str | Path]) -> None:
    compiled(tmp_path / "out", texts)
    check = read_check(tmp_path / "out")
    assert check is not None and check.tuned_on == "my-tune" and check.reported_on == "my-report" and check.report is not None
    ids = token_ids(load_tokenizer(DEMO), Path(texts["report"]).read_text())
    from llmpq.checkpoint.reference import reference_model

    mine, original = losses_of(reference_model(tmp_path / "out"), ids), losses_of(load_original(DEMO), ids)
    differences = [b - a for b, a in zip(sum(mine.windows, ()), sum(original.windows, ()), strict=True)]
    assert check.report.mean == pytest.approx(sum(differences) / len(differences), rel=1e-4)
    assert check.rounds[-1].got.mean > 0 and check.rounds[-1].got.error is not None


def test_a_broken_target_is_planned_again_with_a_tighter_budget_and_the_report_is_measured_once(
    tmp_path: Path, texts: dict[str, str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    increases = iter([0.030, 0.015, 0.5])

    def increase(self: Original, out: Path) -> object:
        measured.append("tune" if self.token_ids == tuning else "report")
        import torch

        return estimate([torch.full((512,), next(increases))])

    tuning = tuple(token_ids(load_tokenizer(DEMO), Path(texts["tune"]).read_text()))
    monkeypatch.setattr(Original, "increase", increase)
    made = compiled(tmp_path / "out", texts, max_ppl_increase=0.02, precisions=("16", "w8a16", "w4a16"))
    check = read_check(tmp_path / "out")
    assert check is not None and check.held and measured == ["tune", "tune", "report"]
    first, second = check.rounds
    assert second.budget < first.budget and second.predicted <= second.budget
    assert made.plan.quality.budget == pytest.approx(second.budget)
    assert made.plan.quality.sensitivity == pytest.approx(second.predicted)


def test_an_explicit_target_that_is_not_met_fails_and_names_what_was_reached(
    tmp_path: Path, texts: dict[str, str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(Original, "increase", lambda self, out: estimate([torch.full((512,), 0.5)]))
    with pytest.raises(QualityError, match=r"was not met in \d rounds?: the best plan measured \+0.5000 ± 0.0000 on my-tune"):
        compiled(tmp_path / "explicit", texts, max_ppl_increase=0.02)
    made = compiled(tmp_path / "default", texts)
    assert any("the default quality target is not met" in notice for notice in made.notices)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"quality_check": False}, "--no-quality-check"), ({"theta": 0.0}, "no quality target was given")],
)
def test_a_check_that_is_skipped_says_why(
    tmp_path: Path, texts: dict[str, str | Path], options: dict[str, object], reason: str
) -> None:
    compiled(tmp_path / "out", texts, **options)
    check = read_check(tmp_path / "out")
    assert check is not None and check.skipped == reason and not check.rounds


def test_a_text_too_short_to_measure_on_is_refused(tmp_path: Path, texts: dict[str, str | Path]) -> None:
    (tmp_path / "short.txt").write_text("import os\n")
    with pytest.raises(InputError, match=r"text short has . tokens; at least 257 are needed"):
        compiled(tmp_path / "out", {**texts, "tune": tmp_path / "short.txt"})
    assert not (tmp_path / "out").exists()


def test_a_model_too_large_for_this_machine_is_not_measured(
    tmp_path: Path, texts: dict[str, str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmpq.quantization.room.host_memory", lambda: 1 << 20)
    compiled(tmp_path / "out", texts)
    check = read_check(tmp_path / "out")
    assert check is not None and "in fp32, and this machine has 1.0 MiB of memory free" in check.skipped


def test_the_command_prints_what_was_measured(cli: CommandLine, tmp_path: Path, texts: dict[str, str | Path]) -> None:
    options = ("--indicator", "prior", "--quantizer", "rtn", "--batch-size", "2", "--prompt-len", "8", "--gen-len", "8")
    files = [item for name, path in texts.items() for item in (f"--{name}", path)]
    outcome = cli("compile", "demo", "--cluster", "1xCPU", *options, *files, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if line.startswith("measured")]
    assert len(lines) == 2 and "round 1: asked +0.0198" in lines[0] and "on my-tune" in lines[0] and "on my-report" in lines[1]
    assert "quality" in json.loads((tmp_path / "out" / "build.json").read_text())


def test_the_original_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path))
    ids = tuple(range(3, 60))
    losses = Original.of(DEMO, ids).losses()
    monkeypatch.setattr("llmpq.checkpoint.loss_increase.load_original", lambda directory: pytest.fail("loaded again"))
    assert Original.of(DEMO, ids).losses() == losses
