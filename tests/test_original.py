"""The original model as it is measured."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmpq.errors import CheckpointError
from llmpq.frontend.models import data_path
from llmpq.quantization.original import load_original, log_probs_of, max_positions

DIRECTORY = data_path("models", "demo")


@pytest.fixture(scope="module")
def model() -> Any:
    return load_original(DIRECTORY)


def test_it_is_in_fp32_and_in_eval_mode(model: Any) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_log_probabilities_sum_to_one_and_see_the_past_alone(model: Any) -> None:
    log_probs = log_probs_of(model)
    whole, part = log_probs([5, 6, 7, 8]), log_probs([5, 6, 7])
    assert whole.shape == (4, 2048) and whole.dtype == torch.float32
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(4))
    torch.testing.assert_close(whole[:3], part, rtol=0, atol=1e-4)


def test_the_context_is_that_of_the_configuration(model: Any) -> None:
    assert max_positions(model) == 1024
    unbounded: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=SimpleNamespace))
    assert max_positions(unbounded) is None


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(DIRECTORY, tmp_path / "copy"))
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_original(copy)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights; expected model"):
        load_original(copy)
