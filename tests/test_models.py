"""Models by name: what each kind of name gives, and one line for each that gives nothing."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from llmpq.errors import CheckpointError, InputError
from llmpq.frontend.models import (
    ModelSource,
    bundled_configurations,
    calibration_text,
    data_path,
    load_tokenizer,
    read_text,
    resolve,
    trace_source,
)
from tests.tiny_models import tiny_config, tiny_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_config("llama").save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


def test_a_directory_is_named_by_its_last_part(directory: Path) -> None:
    assert resolve(str(directory), weights=True) == ModelSource("tiny-llama", directory, directory / "config.json")


def test_a_directory_is_traced_without_weights(directory: Path) -> None:
    traced, graph = trace_source(resolve(directory, weights=False))
    assert (graph.model, graph.num_layers) == ("tiny-llama", 4)
    assert all(parameter.is_meta for parameter in traced.parameters())


def test_a_module_is_traced_as_it_is() -> None:
    model = tiny_model("llama")
    traced, graph = trace_source(resolve(model, weights=False))
    assert graph.model == "LlamaForCausalLM"
    assert traced.get_parameter("lm_head.weight") is model.lm_head.weight


@pytest.mark.parametrize("name", ["opt-13b", "OPT-13B"])
def test_a_bundled_configuration_has_no_weights(name: str) -> None:
    assert resolve(name, weights=False) == ModelSource("opt-13b", None, bundled_configurations()["opt-13b"])


def test_an_unknown_name_lists_what_is_bundled_and_the_nearest() -> None:
    with pytest.raises(
        InputError,
        match=r"^no directory, hub id or bundled configuration named 'opt-31b'; bundled: .*, demo; did you mean 'opt-30b'\?$",
    ):
        resolve("opt-31b", weights=False)


def test_a_directory_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; expected the directory of a Hugging Face model"):
        resolve(tmp_path, weights=False)


@pytest.mark.parametrize(
    ("weights", "patterns"), [(False, ["config.json"]), (True, ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"])]
)
def test_of_a_hub_id_only_what_is_needed_is_downloaded(
    directory: Path, monkeypatch: pytest.MonkeyPatch, weights: bool, patterns: list[str]
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = resolve("some/model", weights=weights)
    assert asked == [("some/model", patterns)]
    assert source == ModelSource("some/model", directory if weights else None, directory / "config.json")


def test_what_the_hub_does_not_give_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no such repository\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"^no directory named 'some/model', and the hub did not give it: no such repository$"):
        resolve("some/model", weights=False)


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"a model is a directory, a hub id, a bundled name or an nn\.Module; found a int"):
        resolve(3, weights=False)
    assert resolve(nn.Identity(), weights=False).name == "Identity"


def test_a_directory_without_tokenizer_is_told_in_one_line(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer that transformers reads .*copy tokenizer\.json beside the weights"):
        load_tokenizer(directory)


def test_texts_are_files_or_bundled(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("hello")
    assert read_text(path) == calibration_text(path) == ("hello", "mine")
    with pytest.raises(InputError, match="text 'missing' is neither a file nor a bundled text"):
        read_text("missing")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8 at byte 0"):
        read_text(path)


def test_data_is_found_beside_the_package() -> None:
    assert data_path("configs", "opt-13b.json").is_file()
