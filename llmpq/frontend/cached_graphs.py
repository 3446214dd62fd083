"""Layer graphs without tracing: those that ship with llmpq, and those in the user's cache."""

import json
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from llmpq.cache import cache_folder
from llmpq.errors import InputError
from llmpq.frontend.models import CONFIG_FILE, ModelSource, build_source, bundled_configurations, data_path, trace_source
from llmpq.graph import LayerGraph
from llmpq.serialize import loads, to_json

if TYPE_CHECKING:
    from torch.fx import GraphModule

FORMAT = "llmpq-graph-1"
_TRACERS = ("*.py", "frontend/*.py", "fx/*.py")  # below llmpq: the sources that a layer graph is a function of, and a few more
_LIBRARIES = ("torch", "transformers")
_WITHOUT_EFFECT = ("quantization_config", "dtype", "torch_dtype", "transformers_version", "_name_or_path")


def layer_graph_of(source: ModelSource) -> LayerGraph:
    """The LayerGraph of a model: as it ships, else from the user's cache, else traced and kept there.

    Only tracing imports torch. A module of the user's is always traced. Raises TraceError with the reason.
    """
    if source.config is None:
        return trace_source(source)[1]
    shipped = bundled_graph_path(source.name)
    if shipped.is_file() and _relevant(source.config) == _relevant(_bundled_config(source.name)):
        return loads(LayerGraph, shipped.read_text(encoding="utf-8"), str(shipped))
    path = cache_folder() / "graphs" / f"{graph_key(source.config)}.json"
    if path.is_file():
        with suppress(InputError):  # another version's, or cut short: traced again
            return replace(loads(LayerGraph, path.read_text(encoding="utf-8"), str(path)), model=source.name)
    graph = trace_source(source)[1]
    with suppress(OSError):  # a cache that cannot be written to costs time, nothing else
        _store(path, format_layer_graph(graph))
    return graph


def traced_module_of(source: ModelSource) -> "GraphModule":
    """The traced graph of a model, without weights. Raises TraceError with the reason."""
    from llmpq.frontend.tracing import trace

    return trace(build_source(source))


def bundled_graph_path(name: str) -> Path:
    return data_path("graphs", f"{name}.json")


def format_layer_graph(graph: LayerGraph) -> str:
    """The graph as JSON on one line; `llmpq.serialize.loads` reads it."""
    return json.dumps(to_json(graph), separators=(",", ":")) + "\n"


def graph_key(config: Path) -> str:
    """A digest of what a layer graph depends on: the configuration, the libraries' versions, the sources of the tracer."""
    versions = [version(name) for name in _LIBRARIES]
    digest = sha256(json.dumps([FORMAT, _relevant(config), versions], sort_keys=True).encode())
    for path in sorted(found for pattern in _TRACERS for found in data_path().parent.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _relevant(config: Path) -> Any:
    """What the configuration says of the architecture: a compiled model has that of the model that it was made from."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{config}: is not JSON: {error}") from error
    return {key: value for key, value in values.items() if key not in _WITHOUT_EFFECT} if isinstance(values, dict) else values


def _bundled_config(name: str) -> Path:
    return bundled_configurations().get(name, data_path("models", name, CONFIG_FILE))


def _store(path: Path, text: str) -> None:
    """All of it or nothing, also when several processes write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as part:
        part.write(text)
    Path(part.name).replace(path)
