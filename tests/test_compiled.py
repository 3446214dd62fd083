"""The compiled model: against the dequantized reference, against transformers, and what it generates."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpq import CompiledModel, load
from llmpq.checkpoint.manifest import verify
from llmpq.checkpoint.reference import reference_model
from llmpq.errors import InputError
from llmpq.evaluation import evaluate_text
from llmpq.frontend.models import read_text, token_ids
from llmpq.quantization.original import log_probs_of
from llmpq.runtime.launcher import launch
from tests.command_line import environment
from tests.forced_reference import at_once, by_steps
from tests.loading import load_by_transformers

LENGTHS = ((1, 12), (40, 8), (5, 24), (17, 1), (48, 3))  # tokens of prompt and continuation; one more than a batch holds
Forced = tuple[list[list[int]], list[list[int]]]  # prompts, and what follows them
FORCED = """
import json, sys
from llmpq import load
prompts, continuations = json.load(open(sys.argv[2]))
with load(sys.argv[1]).reference().distributed() as backend:
    if backend.rank:
        backend.follow()
    else:
        print(json.dumps(backend.log_probs(prompts, continuations)))
"""


@pytest.fixture(scope="module")
def compiled(mixed_out: Path) -> CompiledModel:
    return load(mixed_out)


@pytest.fixture(scope="module")
def in_fp32(compiled: CompiledModel) -> CompiledModel:
    return compiled.reference()


@pytest.fixture(scope="module")
def ids(compiled: CompiledModel) -> list[int]:
    return token_ids(compiled.tokenizer, read_text("report")[0])[:1025]


@pytest.fixture(scope="module")
def forced(ids: list[int]) -> Forced:
    """Prompts of different lengths, and what follows them."""
    starts = [100 * index for index in range(len(LENGTHS))]
    prompts = [ids[start : start + prompt] for start, (prompt, _) in zip(starts, LENGTHS)]
    return prompts, [ids[start + prompt : start + prompt + more] for start, (prompt, more) in zip(starts, LENGTHS)]


@pytest.fixture(scope="module")
def reference(mixed_out: Path) -> Any:
    return reference_model(mixed_out)


@pytest.fixture(scope="module")
def expected(reference: Any, in_fp32: CompiledModel, forced: Forced) -> list[list[float]]:
    return by_steps(reference, in_fp32, *forced)


def test_every_precision_is_in_the_mixture_and_it_has_two_stages(compiled: CompiledModel) -> None:
    assert all(compiled.plan.options.count(option) >= 2 for option in ("16", "w8a8", "w8a16", "w4a16"))
    assert len(compiled.plan.stages) == len(compiled.stages) == 2
    assert all(isinstance(stage, torch.fx.GraphModule) for stage in (*compiled.stages, compiled.graph_module))


def agree(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> bool:
    """Log-probabilities that differ by at most 1e-4."""
    return all(one == pytest.approx(other, rel=0, abs=1e-4) for one, other in zip(found, expected, strict=True))


def test_prefill_and_cached_decode_agree_with_the_reference(
    in_fp32: CompiledModel, forced: Forced, expected: list[list[float]]
) -> None:
    assert list(map(len, expected)) == [more for _, more in LENGTHS]
    assert agree(in_fp32.backend.log_probs(*forced), expected)


def test_without_rounded_activations_decode_agrees_with_the_reference_over_whole_sequences(
    weight_only_out: Path, forced: Forced
) -> None:
    compiled, reference = load(weight_only_out).reference(), reference_model(weight_only_out)
    assert set(compiled.plan.options) == {"16", "w8a16", "w4a16"} and len(compiled.plan.stages) == 2
    whole = [at_once(reference, [*prompt, *more])[-len(more) :] for prompt, more in zip(*forced)]
    assert agree(compiled.backend.log_probs(*forced), whole)


def test_scoring_agrees_with_the_reference(in_fp32: CompiledModel, reference: Any, forced: Forced) -> None:
    sequences = [[*prompt, *more] for prompt, more in zip(*forced)]
    # one by one: 8-bit activations round at ties, which another batch shape may tip
    scores = [in_fp32.backend.score([sequence])[0] for sequence in sequences]
    assert agree(scores, [at_once(reference, sequence) for sequence in sequences])


def test_two_processes_agree_with_the_reference(
    mixed_out: Path,
    forced: Forced,
    expected: list[list[float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "forced.json").write_text(json.dumps(forced))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    assert launch([sys.executable, "-c", FORCED, str(mixed_out), str(tmp_path / "forced.json")], 2) == 0
    assert agree(json.loads(capfd.readouterr().out), expected)


def test_the_whole_distribution_agrees_with_the_reference(in_fp32: CompiledModel, reference: Any, ids: list[int]) -> None:
    assert float((in_fp32.log_probs(ids[:256]) - log_probs_of(reference)(ids[:256])).abs().max()) <= 1e-4


def test_transformers_loads_it_without_a_word_and_agrees_within_half_a_percent(
    mixed_out: Path, compiled: CompiledModel, ids: list[int]
) -> None:
    model, said = load_by_transformers(mixed_out)
    assert said == []
    theirs, ours = evaluate_text(ids, log_probs_of(model)), evaluate_text(ids, compiled.log_probs)
    assert ours.cross_entropy == pytest.approx(theirs.cross_entropy, rel=0.005)


def test_a_prompt_gets_the_same_text_alone_and_in_a_batch(weight_only_out: Path) -> None:
    in_fp32 = load(weight_only_out).reference()
    prompts = ["def main(", "import os\n", "class", "", "    return self", "for index, item in enumerate("]
    together = in_fp32.generate(prompts, max_new_tokens=12)
    assert together == [in_fp32.generate(prompt, max_new_tokens=12)[0] for prompt in prompts]
    assert all(together) and len(set(together)) > 1


def test_sampling_is_reproduced_by_its_seed(compiled: CompiledModel) -> None:
    first, again, other = (compiled.generate("def ", 16, temperature=1.0, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_generation_ends_with_the_end_of_text(mixed_out: Path) -> None:
    compiled = load(mixed_out)
    streamed: list[int] = []
    compiled.generate("def main(", 12, stop_at_eos=False, on_token=lambda _, token: streamed.append(token))
    assert len(streamed) == 12
    last = streamed[4]
    compiled.tokenizer.eos_token_id = last
    assert compiled.eos_token_ids == (last, 0)
    seen: list[int] = []
    compiled.generate("def main(", 12, on_token=lambda _, token: seen.append(token))
    assert seen == streamed[: streamed.index(last) + 1]


def test_every_token_that_the_generation_config_names_ends_a_text(mixed_out: Path, tmp_path: Path) -> None:
    copy = load(mixed_out).export(tmp_path / "copy")
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [0, 7, 9]}))
    assert load(copy).eos_token_ids == (0, 7, 9)
    path.unlink()
    assert load(copy).eos_token_ids == (0,)


def test_an_exported_copy_is_sound_and_equal(compiled: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = compiled.export(tmp_path / "copy")
    assert verify(copy) == verify(compiled.directory)
    assert load(copy).plan == compiled.plan
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert str(load(copy)) == str(compiled)


def test_export_leaves_what_is_there_alone(compiled: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(InputError, match="mine: exists and is not empty; choose another directory"):
        compiled.export(tmp_path / "mine")
    with pytest.raises(InputError, match="which is to be copied; choose another directory"):
        compiled.export(compiled.directory / "copy")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_what_is_not_compiled_is_not_loaded(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"is not a compiled model; `llmpq compile MODEL --cluster C -o .*` makes one"):
            load(path)


def test_a_check_before_running_finds_what_running_would(mixed_out: Path, tmp_path: Path) -> None:
    compiled: Any = load(load(mixed_out).export(tmp_path / "copy"))
    params = compiled.sampling(8, 0.0, 0, 1.0, 0, True)
    compiled.check(["def main("], params)
    with pytest.raises(InputError, match=r"sequence 1 needs .* positions"):
        compiled.check(["def main(", "x = 1\n" * 1000], params)
    shard = tmp_path / "copy" / "model-stage-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"model-stage-00001-of-00002.safetensors: truncated"):
        compiled.check(["def main("], params)
