"""A compile that is killed at any point goes on where it stopped and ends with the bytes of one that was not."""

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from llmpq.checkpoint import replacing
from llmpq.checkpoint.journal import Journal
from llmpq.checkpoint.manifest import Manifest
from llmpq.checkpoint.reader import Checkpoint
from llmpq.checkpoint.shards import write_shards
from llmpq.checkpoint.tensor_file import TensorFileWriter
from llmpq.checkpoint.work_key import work_key
from llmpq.frontend.build import build_model, trace_model
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.quantization.quantizers import Gptq, Quantizer, Rounding
from tests.tiny_checkpoint import MIXED, VOCABULARY, plan, save_llama

TOKENS = tuple(torch.randint(0, VOCABULARY, (400,), generator=torch.Generator().manual_seed(0)).tolist())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("source") / "tiny")


@cache
def traced(source: Path) -> tuple[GraphModule, LayerGraph]:
    return trace_model(build_model(source), "tiny")


def quantizer_of(source: Path, name: str) -> Quantizer:
    if name == "rtn":
        return Rounding()
    return Gptq(traced(source)[0], TOKENS, "random", window=32, count=6)


def write(source: Path, out: Path, quantizer: Quantizer, chosen: Plan | None = None) -> dict[str, bytes]:
    """The files of an output but build.json."""
    write_shards(out, Checkpoint.open(source), traced(source)[1], chosen or plan(), assets=source, build={}, quantizer=quantizer)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "build.json"}


def resumed_layers(out: Path) -> int:
    found: int = json.loads((out / "build.json").read_text())["quantization"]["resumed"]
    return found


def _tear(writer: Any, name: str, tensor: torch.Tensor) -> None:
    """The first bytes of a tensor, wrong ones."""
    writer._file.seek(writer._start + writer._missing[name][1])
    writer._file.write(b"to")
    writer._file.flush()


@contextmanager
def counted(fatal: int | None) -> Iterator[list[int]]:
    """Counts what touches the disk; at the `fatal`-th, half-way through where there is a half, the process kills itself."""
    count = [0]
    real: list[tuple[Any, str, Callable[..., Any]]] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        real.append((owner, name, original))

        def step(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == fatal:
                if name == "write" and owner is TensorFileWriter:
                    _tear(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        setattr(owner, name, step)

    for owner, name in (
        (TensorFileWriter, "write"),
        (TensorFileWriter, "sync"),
        (Journal, "add"),
        (Journal, "remove"),
        (Manifest, "write"),
        (replacing, "_swap"),
        (Path, "rename"),
    ):
        watch(owner, name)
    try:
        yield count
    finally:
        for owner, name, original in real:
            setattr(owner, name, original)


def killed(source: Path, out: Path, quantizer: Quantizer, fatal: int) -> None:
    """Writes in a process of its own that kills itself at the `fatal`-th step."""

    def child() -> None:
        with counted(fatal):
            write(source, out, quantizer)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_killed_at_random_points_it_resumes_and_ends_with_the_same_bytes(name: str, source: Path, tmp_path: Path) -> None:
    quantizer = quantizer_of(source, name)
    with counted(None) as steps:
        expected = write(source, tmp_path / "undisturbed", quantizer)
    points = sorted(random.Random(7).sample(range(1, steps[0] + 1), 3))
    resumed = []
    for fatal in points:
        out = tmp_path / f"killed-{fatal}"
        killed(source, out, quantizer, fatal)
        assert not out.exists() or fatal == steps[0]
        assert write(source, out, quantizer) == expected
        resumed.append(resumed_layers(out))
    assert resumed == sorted(resumed) and 0 < resumed[-1] <= len(MIXED)
    assert {path.name for path in tmp_path.iterdir()} == {"undisturbed", *(f"killed-{fatal}" for fatal in points)}


def test_killed_again_and_again_it_gets_there(source: Path, tmp_path: Path) -> None:
    quantizer = quantizer_of(source, "gptq")
    expected = write(source, tmp_path / "undisturbed", quantizer)
    for fatal in (30, 30, 30):  # steps of each process: every time some more layers are finished
        killed(source, tmp_path / "out", quantizer, fatal)
    assert write(source, tmp_path / "out", quantizer) == expected
    assert resumed_layers(tmp_path / "out") >= 2


def test_another_plan_starts_over_and_removes_what_was_left(source: Path, tmp_path: Path) -> None:
    quantizer, out = quantizer_of(source, "rtn"), tmp_path / "out"
    killed(source, out, quantizer, 60)
    (left,) = tmp_path.iterdir()
    assert left.name == f".out.partial-{work_key(Checkpoint.open(source), plan(), quantizer)}"
    write(source, out, quantizer, plan(("w4a16",) * 4))
    assert resumed_layers(out) == 0 and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_key_knows_model_plan_quantizer_text_and_threads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gptq = quantizer_of(source, "gptq")
    assert isinstance(gptq, Gptq)
    checkpoint, other = Checkpoint.open(source), Checkpoint.open(save_llama(tmp_path / "other"))
    keys = [
        work_key(checkpoint, plan(), Rounding()),
        work_key(other, plan(), Rounding()),
        work_key(checkpoint, plan(("16",) * 4), Rounding()),
        work_key(checkpoint, plan(), Rounding(clip=False)),
        work_key(checkpoint, plan(), gptq),
        work_key(checkpoint, plan(), Gptq(gptq.graph_module, TOKENS[:-1], "random", window=32, count=6)),
        work_key(checkpoint, plan(), Gptq(gptq.graph_module, TOKENS, "random", window=32, count=6, smooth=False)),
    ]
    assert len(set(keys)) == len(keys) and work_key(checkpoint, plan(), gptq) == keys[4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert work_key(checkpoint, plan(), gptq) != keys[4]
