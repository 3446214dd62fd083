"""The examples: each runs to its end as a reader would start it, and says what it is there to say."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from tests.command_line import ROOT

EXAMPLES = ROOT / "examples"
MINUTES = {"demo.py": "make demo", "train_demo_model.py": "tests/test_train_demo_model.py"}  # what runs them instead
SAYS = {
    "quickstart.py": r"plan for demo.*CPU:0: layers",
    "custom_cluster.py": r"RTX4090:0.*with average_bits >= 15: ",
    "foreign_cluster.py": r"longest context at w8a16: \d+; beyond it .* short.*as it is: \d+ tokens/s.*T4:0=L4: \d+ tokens/s",
    "own_module.py": r"largest difference of the logits: 0\.0",
    "own_pass.py": r"AssignByMemory\{precision=w4a16\}: [\d.]+ tokens/s.*assign-joint: [\d.]+ tokens/s",
    "encoder.py": r"largest difference of the logits: 0\.0",
}


def test_every_example_is_run_and_stands_in_the_readme() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == set(SAYS) | set(MINUTES) | {"torchrun_hosts.py"}
    assert all(name in (EXAMPLES / "README.md").read_text(encoding="utf-8") for name in scripts)


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_and_says_what_it_shows(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as where a script runs by itself
    monkeypatch.setattr(sys, "argv", [name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    sys.modules.pop("own_pass", None)
    said = capsys.readouterr().out
    assert re.search(SAYS[name], said, re.S), said
    if name == "own_pass.py":
        own, joint = (float(speed) for speed in re.findall(r"([\d.]+) tokens/s", said))
        assert joint > own


def test_two_hosts_started_by_torchrun_generate_together(capfd: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "torchrun_hosts.py"), run_name="__main__")
    said = capfd.readouterr()
    assert said.out.count("$ torchrun --nnodes 2") == 2
    assert re.search(r"^def main\(", said.out, re.M), said.err
