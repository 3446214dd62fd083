"""The plan on real vLLM over unlike devices beside what a patient human finds by measuring: needs `make engines`, Linux, root.

OMP_NUM_THREADS=1 python benchmarks/vllm_hetero.py shares      what the shares of a core are worth, once there is a model
OMP_NUM_THREADS=1 python benchmarks/vllm_hetero.py prepare     model, checkpoints, sensitivity, profile in vLLM, plans
OMP_NUM_THREADS=1 python benchmarks/vllm_hetero.py run         every cluster; what is in the JSON already is not measured again
python benchmarks/vllm_hetero.py table                         the rows, and the geometric mean over the best by hand

Devices are vLLM's CPU ranks, one thread each, in control groups that hold them to a share of a core (benchmarks/hetero/clusters).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from hetero.bench import Bench
from hetero.calibration import TOLERANCE, Calibration
from hetero.session import session
from hetero.shares import worth_of_shares
from hetero.vllm_case import BATCH, UNIFORM, Case, Inputs
from hetero.vllm_table import show
from machine import machine

from llmpq.compiler import compile

ROOT = Path(__file__).parent
RESULTS = ROOT / "results" / "vllm_hetero.json"
NAMES = ("four-to-one", "two-to-one", "one-to-one", "slow-link", "four-two-one", "unlike-instructions")
LOADS = ("batch", "serving")
KL_TOKENS = 1024
HEAD_SCALE = 0.08  # standard deviation of the tied embedding: logits then spread like those of a trained model, by about 2.6
FOLDER = click.option("--folder", type=click.Path(path_type=Path), default=Path("out/vllm-hetero"), show_default=True)
JSON_FILE = click.option("--json", "path", type=click.Path(path_type=Path), default=RESULTS, show_default=True)


@click.group()
def main() -> None:
    """See the module's docstring."""


@main.command()
@FOLDER
@click.option("--cluster", "names", multiple=True, type=click.Choice(NAMES), default=NAMES)
def prepare(folder: Path, names: Sequence[str]) -> None:
    """Everything that needs no quiet machine; what is there already is kept."""
    inputs = Inputs(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _unless(inputs.model, save_model)
    tables = ["--precisions", ",".join(UNIFORM)]
    _unless(inputs.sensitivity, lambda out: _llmpq("sensitivity", inputs.model, "--indicator", "fisher", *tables, "-o", out))
    profile = folder / "profile.json"
    _unless(profile, lambda out: _llmpq("profile", inputs.model, "--engine", "vllm", *tables, "-o", out))
    for option in UNIFORM:
        _unless(inputs.uniform(option), lambda out, option=option: _uniform(inputs.model, out, option))
    for name in names:
        _plans(Case(name, inputs))


@main.command()
@FOLDER
@click.option("--cluster", "names", multiple=True, type=click.Choice(NAMES), default=NAMES)
def shares(folder: Path, names: Sequence[str]) -> None:
    """Measure what the shares of a core are worth to vLLM, for the plans; alone on the machine, before `prepare`."""
    inputs = Inputs(folder)
    asked = {device.speed for name in names for device in Case(name, inputs).cluster.devices}
    (kind,) = Case(names[0], inputs).program.graph.kinds
    found = worth_of_shares(sorted(asked, reverse=True), inputs.uniform("w8a8"), kind.kv_bytes_per_token, folder / "vllm.log")
    click.echo("\n".join(inputs.keep_shares(found)))


@main.command()
@FOLDER
@JSON_FILE
@click.option("--cluster", "names", multiple=True, type=click.Choice(NAMES), default=NAMES)
@click.option("--seconds", type=float, help="Begin no cluster after so long.")
@click.option("--others/--no-others", default=True, help="Also rows beside llmpq and the best by hand.")
def run(folder: Path, path: Path, names: Sequence[str], seconds: float | None, others: bool) -> None:
    """Measure; alone on the machine."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # both end the run with everything that it started
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # for all that is started from here: others on the machine get next to nothing
    started, found = time.monotonic(), _read(path)
    found.setdefault("machine", machine())
    for name in names:
        if found["clusters"].get(name, {}).get("done") or (seconds is not None and time.monotonic() - started > seconds):
            continue
        case = Case(name, Inputs(folder))
        state = found["clusters"].setdefault(name, {"search": {}, "rows": []})

        def keep(found: dict[str, Any] = found) -> None:
            path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")

        with session(case.cluster, folder / "vllm.log", case.has_slow_link) as made:
            before = _told(made.calibrate())
            Bench(case, made, state, keep, others).measure()
            after = _told(made.calibrate())
        state |= {
            "speeds": case.speeds,
            "before": before,
            "after": after,
            "discarded": _is_off(before) or _is_off(after),
            "done": True,
        }
        keep()
    show(found)


@main.command()
@JSON_FILE
def table(path: Path) -> None:
    """Print what was measured."""
    show(_read(path))


@main.command()
@FOLDER
@JSON_FILE
def divergence(folder: Path, path: Path) -> None:
    """Add the divergence from the original of every model that was measured."""
    found = _read(path)
    known: dict[str, Any] = found.setdefault("kl", {})
    for state in found["clusters"].values():
        for row in state["rows"]:
            key = ",".join(row["options"])
            if key not in known:
                known[key] = _divergence(Inputs(folder), row)
                path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    show(found)


def _plans(case: Case) -> None:
    for load in LOADS:
        for option in UNIFORM[1:]:
            _unless(case.planned(load, option), lambda out, load=load, option=option: case.compile(load, option))


def save_model(folder: Path) -> None:
    """A random Llama of 197 million parameters; the tokenizer of the demo model, so that texts can be read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=8192,
        max_position_embeddings=1024,
        eos_token_id=None,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data.normal_(0, HEAD_SCALE)
    model.to(torch.bfloat16).save_pretrained(folder)
    demo = ROOT.parent / "llmpq" / "data" / "models" / "demo"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)


def _uniform(model: Path, out: Path, option: str) -> None:
    options: dict[str, Any] = {"precisions": option, "engine": "vllm", "indicator": "prior", "quantizer": "rtn"}
    compile(model, "1xCPU", BATCH, out=out, sensitivity_budget=100.0, quality_check=False, **options)


def _divergence(inputs: Inputs, row: dict[str, Any]) -> float:
    """Nats per token between the dequantized model of a row and the original, over the report text."""
    model = Path(row["model"]).parent.parent / "out" if "planned" in row["model"] else Path(row["model"])
    said = _llmpq("eval", model, "--text", "report", "--against", inputs.model, "--max-tokens", KL_TOKENS, "--json")
    return float(json.loads(said)["kl"])


def _unless(path: Path, make: Callable[[Path], object]) -> None:
    if not path.exists():
        click.echo(f"making {path}", err=True)
        make(path)


def _llmpq(*arguments: object) -> str:
    command = [sys.executable, "-m", "llmpq", *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"clusters": {}}
    return found


def _told(calibration: Sequence[Calibration]) -> list[dict[str, Any]]:
    return [
        {
            "device": each.name,
            "asked": each.asked,
            "cores": {str(work): round(share, 3) for work, share in each.cores.items()},
            "speed": {str(work): round(speed, 3) for work, speed in each.speed.items()},
        }
        for each in calibration
    ]


def _is_off(calibration: list[dict[str, Any]]) -> bool:
    return any(abs(share / each["asked"] - 1) > TOLERANCE for each in calibration for share in each["cores"].values())


if __name__ == "__main__":
    main()
