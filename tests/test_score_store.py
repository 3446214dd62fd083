"""Score stores: the same model on the same text has one store, anything else another."""

import json
import shutil
from pathlib import Path

import pytest

from llmpq.checkpoint.reader import Checkpoint
from llmpq.quantization.room import no_room_for
from llmpq.quantization.score_store import fingerprint, score_store
from tests.tiny_checkpoint import save_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


def test_a_copy_of_a_model_shares_its_store(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    stores = [score_store(Checkpoint.open(path), [1, 2, 3]) for path in (checkpoint, tmp_path / "copy")]
    assert stores[0] == stores[1] != score_store(Checkpoint.open(checkpoint), [1, 2, 4])


def test_other_weights_or_another_configuration_make_another_model(checkpoint: Path, tmp_path: Path) -> None:
    found = {fingerprint(Checkpoint.open(checkpoint))}
    weights = shutil.copytree(checkpoint, tmp_path / "weights") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    config = shutil.copytree(checkpoint, tmp_path / "config") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    found |= {fingerprint(Checkpoint.open(tmp_path / name)) for name in ("weights", "config")}
    assert len(found) == 3


def test_a_model_larger_than_the_memory_is_not_run(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Checkpoint.open(checkpoint)
    assert no_room_for(opened) is None
    monkeypatch.setattr("llmpq.quantization.room.host_memory", lambda: 1 << 20)
    assert "and this machine has 1.0 MiB of memory free" in (no_room_for(opened) or "")
