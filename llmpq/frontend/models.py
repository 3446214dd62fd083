"""Models by name: a directory, a hub id, `demo`, a bundled configuration, or a module the user built."""

import re
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmpq.errors import CheckpointError, InputError, TraceError
from llmpq.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

    from llmpq.graph import LayerGraph

DEMO = "demo"
CONFIG_FILE = "config.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from. `directory` holds weights and tokenizer, None where there are none; `config` is the file that
    describes the model, None for a `module` of the user's."""

    name: str
    directory: Path | None = None
    config: Path | None = None
    module: "nn.Module | None" = None


def resolve(model: Any, *, weights: bool) -> ModelSource:
    """What `model` names; from the hub only config.json is downloaded unless `weights` are needed.

    Raises InputError for a name that is neither of a directory nor of a bundled model nor on the hub, in one line.
    """
    if not isinstance(model, str | Path):
        return _from_module(model)
    name, path = str(model), Path(model)
    if path.is_dir():
        return _from_directory(path.resolve().name, path)
    if name == DEMO:
        return _from_directory(DEMO, data_path("models", DEMO))
    configurations = bundled_configurations()
    if name.lower() in configurations:
        return ModelSource(name.lower(), config=configurations[name.lower()])
    if path.is_file():
        raise InputError(f"model {name!r} is a file, expected the directory of a Hugging Face model: give {str(path.parent)!r}")
    if name.startswith((".", "/", "~")):
        raise InputError(f"no directory {name!r}, expected that of a Hugging Face model, a hub id or a bundled name")
    if HUB_ID.fullmatch(name):
        return _from_hub(name, weights)
    known = (*configurations, DEMO)
    raise InputError(
        f"no directory, hub id or bundled configuration named {name!r}; bundled: {', '.join(known)}{did_you_mean(name, known)}"
    )


def trace_source(source: ModelSource) -> "tuple[GraphModule, LayerGraph]":
    """The traced graph and the LayerGraph of a model, without reading weights. Raises TraceError with the reason."""
    from llmpq.frontend.build import trace_model

    return trace_model(build_source(source), source.name)


def build_source(source: ModelSource) -> "nn.Module":
    """The user's module, or the model of the configuration without weights. Raises TraceError when it cannot be built."""
    from llmpq.frontend.build import build_model

    if source.module is not None:
        return source.module
    if source.config is None:
        raise TraceError(f"model {source.name!r} has neither a configuration nor a module; resolve it first")
    return build_model(source.config)


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in `directory`. Raises CheckpointError when there is none that transformers reads."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{directory}: no tokenizer that transformers reads ({reason}); copy tokenizer.json beside the weights"
        ) from error


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text of any length; longer ones than the model's context are cut into windows later."""
    return list(tokenizer.encode(text, verbose=False))


def read_text(name: str | PathLike[str]) -> tuple[str, str]:
    """(content, name) of a text file, or of a bundled text: calibrate, tune, report."""
    path = Path(name)
    bundled = {text.stem: text for text in sorted(data_path("models", DEMO).glob("texts/*.txt"))}
    if str(name) in bundled and not path.is_file():
        path = bundled[str(name)]
    if not path.is_file():
        hint = did_you_mean(str(name), bundled)
        raise InputError(f"text {str(name)!r} is neither a file nor a bundled text; bundled: {', '.join(bundled)}{hint}")
    return read_utf8(path, "text"), path.stem


def read_utf8(path: Path, what: str) -> str:
    """The text in a file that the user named; InputError when there is none, `what` says what was expected."""
    if not path.is_file():
        raise InputError(f"{what} file {path} does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} file {path}: not UTF-8 at byte {error.start}; expected a text file") from error


def calibration_text(path: str | PathLike[str] | None) -> tuple[str, str]:
    """(content, name) of the text that indicators look at: the user's, else the bundled one."""
    return read_text("calibrate" if path is None else path)


def has_weights(directory: Path) -> bool:
    """Whether there are safetensors files in `directory`."""
    return next(directory.glob("*.safetensors"), None) is not None


def bundled_configurations() -> dict[str, Path]:
    """Name -> configuration file, for planning without weights."""
    return {path.stem: path for path in sorted(data_path("configs").glob("*.json"))}


def data_path(*parts: str) -> Path:
    return Path(str(files("llmpq"))).joinpath("data", *parts)


def _from_module(model: Any) -> ModelSource:
    from torch import nn

    if not isinstance(model, nn.Module):
        raise InputError(f"a model is a directory, a hub id, a bundled name or an nn.Module; found a {type(model).__name__}")
    return ModelSource(type(model).__name__, module=model)


def _from_directory(name: str, directory: Path) -> ModelSource:
    config = directory / CONFIG_FILE
    if not config.is_file():
        raise InputError(f"{directory}: has no {CONFIG_FILE}; expected the directory of a Hugging Face model")
    return ModelSource(name, directory, config)


def _from_hub(name: str, weights: bool) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = HUB_FILES if weights else (CONFIG_FILE,)
    try:
        directory = Path(snapshot_download(name, allow_patterns=list(wanted), ignore_patterns=["*/*"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"no directory named {name!r}, and the hub did not give it: {reason}") from error
    found = _from_directory(name, directory)
    return found if weights else ModelSource(name, config=found.config)
