"""llmpq sensitivity: tables, files for planning, and what it refuses."""

import json
from pathlib import Path

import pytest

from llmpq.sensitivity import SensitivityTable
from llmpq.serialize import loads
from tests.conftest import CommandLine

PLAN = ("plan", "demo", "--cluster", "1xCPU", "--batch-size", "2", "--prompt-len", "8", "--gen-len", "8")


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short text, and a cache of its own."""
    monkeypatch.setenv("LLMPQ_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mine.txt"
    path.write_text("def add(a, b):\n    return a + b\n" * 8)
    return path


@pytest.mark.parametrize("indicator", ["fisher", "hessian", "variance", "random", "prior"])
def test_a_table_is_printed_and_written_for_planning(cli: CommandLine, text: Path, tmp_path: Path, indicator: str) -> None:
    file = tmp_path / "table.json"
    outcome = cli("sensitivity", "demo", "--indicator", indicator, "--text", text, "--precisions", "16,w4a16", "-o", file)
    assert (
        outcome.code == 0 and outcome.out.startswith(f"sensitivity by {indicator} (") and "layer 11: 16 0.000000" in outcome.out
    )
    table = loads(SensitivityTable, file.read_text())
    assert table.indicator == indicator and table.options == ("16", "w4a16") and len(table.rows) == 12
    planned = cli(*PLAN, "--sensitivity", file, "--precisions", "w4a16", "--sensitivity-budget", "10", "--json")
    assert planned.code == 0, planned.err
    quality = json.loads(planned.out)["quality"]
    assert quality["sensitivity"] == pytest.approx(sum(row[1] for row in table.rows))
    assert quality["provenance"] == table.provenance


def test_indicators_are_compared(cli: CommandLine, text: Path) -> None:
    outcome = cli("sensitivity", "demo", "--compare", "--text", text, "--precisions", "16,w4a16", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    rows = {row["indicator"]: row for row in found["rows"]}
    assert rows["measured"]["rank"] == pytest.approx(1.0) and rows["measured"]["off"] == pytest.approx(1.0)
    assert rows["fisher"]["rank"] > rows["random"]["rank"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert len(found["additivity"]) == 1 and 0.5 < found["additivity"][0] < 2.0
    assert "alone / joint" in cli("sensitivity", "demo", "--compare", "--text", text, "--precisions", "16,w4a16").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--indicator", "fischer"), "indicator 'fischer' is unknown"),
        (("llama-3-8b",), "is a configuration without weights"),
        (("demo", "--text", "none.txt"), "neither a file nor a bundled text"),
        (("demo", "--precisions", "w5"), "precision 'w5' is unknown"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(cli: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    outcome = cli("sensitivity", *arguments)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1


def test_parts_are_scored_by_themselves(cli: CommandLine, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    head = ("sensitivity", "demo", "--text", text, "--precisions", "16,w8a16,w4a16")
    assert cli(*head, "--granularity", "part", "--indicator", "variance", "-o", file).code == 0
    table = loads(SensitivityTable, file.read_text())
    assert len(table.options) == 9 and "w4a16/w8a16" in table.options
    for row in table.rows:
        cells = dict(zip(table.options, row))
        assert cells["w4a16/w8a16"] + cells["w8a16/w4a16"] == pytest.approx(cells["w4a16"] + cells["w8a16"])
    whole = loads(SensitivityTable, cli(*head, "--indicator", "variance", "--json").out)
    assert sum(row[2] for row in table.rows) == pytest.approx(sum(row[2] for row in whole.rows))
    refused = cli(*head, "--granularity", "head")
    assert refused.code == 2 and "known are layer, part" in refused.err
