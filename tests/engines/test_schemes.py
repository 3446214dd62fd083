"""vLLM's matching of targets, fused linears and formats on our checkpoints: every linear under the scheme of its option."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import llmpq
from tests.engines.vllm_run import PYTHON, ROOT

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(not PYTHON.is_file(), reason="there is no environment .engines; `make engines` makes it"),
]

PRECISIONS = ("16", "w8a8", "w8a16", "w4a16")
EXPECTED: dict[str, dict[str, Any] | None] = {
    "16": None,
    "w8a8": {
        "scheme": "CompressedTensorsW8A8Int8",
        "num_bits": 8,
        "format": "int-quantized",
        "strategy": "channel",
        "inputs": True,
    },
    "w8a16": {"scheme": "CompressedTensorsWNA16", "num_bits": 8, "format": "pack-quantized", "strategy": "group", "inputs": None},
    "w4a16": {"scheme": "CompressedTensorsWNA16", "num_bits": 4, "format": "pack-quantized", "strategy": "group", "inputs": None},
}
MIXTURES = {
    "alternating": tuple(PRECISIONS[layer % 4] for layer in range(12)),
    "runs": ("w4a16",) * 5 + ("w8a8",) * 4 + ("w8a16",) * 2 + ("16",),
    "parts": ("w4a16/w8a8", "w8a8/16", "16/w4a16", "w8a16/w4a16") * 3,
}


def compiled(options: tuple[str, ...], out: Path) -> llmpq.CompiledModel:
    rules = tuple(f"layers[{layer}].precision == {option}" for layer, option in enumerate(options))
    asked: dict[str, Any] = {"precisions": tuple(dict.fromkeys(options)), "constraints": rules, "sensitivity_budget": 100.0}
    given: dict[str, Any] = {"engine": "vllm", "indicator": "prior", "quantizer": "rtn", "quality_check": False}
    return llmpq.compile("demo", "1xCPU", llmpq.Batch(2, 16, 8), out=out, **asked, **given)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, llmpq.CompiledModel]:
    """Of one precision, and of mixtures of layers and of their parts."""
    out = tmp_path_factory.mktemp("schemes")
    asked = {name.replace("/", "-"): options for name, options in MIXTURES.items()} | {p: (p,) * 12 for p in PRECISIONS[1:]}
    return {name: compiled(options, out / name) for name, options in asked.items()}


@pytest.fixture(scope="module")
def found(checkpoints: dict[str, llmpq.CompiledModel]) -> dict[str, dict[str, Any]]:
    """Name of the checkpoint -> linear -> what vLLM chooses; no weights are read."""
    command = [str(PYTHON), "-m", "tests.engines.vllm_schemes", *(str(each.directory) for each in checkpoints.values())]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(zip(checkpoints, map(json.loads, lines), strict=True))


def option_of(linear: str, options: tuple[str, ...]) -> str:
    """Of the part that the linear is in: attention, mlp."""
    _, _, layer, block, _ = linear.split(".")
    attention, _, mlp = options[int(layer)].partition("/")
    return attention if block == "self_attn" or not mlp else mlp


@pytest.mark.parametrize("name", [*MIXTURES, *PRECISIONS[1:]])
def test_every_linear_fused_or_not_has_the_scheme_of_its_option(
    name: str, checkpoints: dict[str, llmpq.CompiledModel], found: dict[str, dict[str, Any]]
) -> None:
    linears = dict(found[name])
    assert linears.pop("lm_head") is None
    assert len(linears) == 12 * 9
    for linear, scheme in linears.items():
        expected = EXPECTED[option_of(linear, checkpoints[name].plan.options)]
        if expected is None:
            assert scheme is None, linear
            continue
        assert scheme is not None and scheme["symmetric"], linear
        told = {key: scheme[key] for key in ("scheme", "num_bits", "format", "strategy")} | {"inputs": scheme["dynamic_inputs"]}
        assert told == expected, linear
