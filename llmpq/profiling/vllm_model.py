"""The model that is measured in vLLM: a few layers of the original's, at all precisions in turn, without weights."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.checkpoint.quantization_config import quantization_config
from llmpq.checkpoint.shards import text_config
from llmpq.errors import InputError
from llmpq.frontend.models import ModelSource, read_utf8
from llmpq.graph import LayerGraph, LayerKind
from llmpq.hardware.devices import DeviceType
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.plan import ComputeDtype
from llmpq.precision import PRECISIONS, Precision
from llmpq.profiling.probe import WORKING_SET

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # what configurations call it


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The model's first layers, as many as `options`, each at its own precision."""

    graph: LayerGraph
    options: tuple[Precision, ...]

    def cells(self) -> dict[tuple[int, str], list[int]]:
        """(kind, precision) -> its layers."""
        found: dict[tuple[int, str], list[int]] = {}
        for layer, precision in enumerate(self.options):
            found.setdefault((self.graph.layer_kind[layer], precision.name), []).append(layer)
        return found

    @property
    def precisions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(precision.name for precision in self.options))

    @property
    def kv_bytes_per_token(self) -> int:
        return sum(self.graph.kind_of(layer).kv_bytes_per_token for layer in range(len(self.options)))

    def config(self, source: ModelSource, compute_dtype: ComputeDtype) -> dict[str, Any]:
        """The original's configuration with these layers alone. Raises InputError where it does not tell their number."""
        if source.config is None:
            raise InputError(f"model {source.name!r} is a module; vLLM is measured on a directory, a hub id or a configuration")
        found = text_config(json.loads(read_utf8(source.config, "configuration")), self.graph)
        count = next((key for key in LAYER_COUNTS if found.get(key) == self.graph.num_layers), None)
        if count is None:
            raise InputError(
                f"{source.config}: none of {', '.join(LAYER_COUNTS)} is {self.graph.num_layers}, its number of layers; "
                f"only such a model is measured in vLLM"
            )
        kept = {key: self._shortened(value) for key, value in found.items() if key not in ("torch_dtype", "auto_map")}
        config = kept | {count: len(self.options), "dtype": compute_dtype}
        section = self._quantization()
        return config if section is None else config | {"quantization_config": section}

    def _shortened(self, value: Any) -> Any:
        """A list with an entry for every layer, without those that are left out."""
        by_layer = isinstance(value, list) and len(value) == self.graph.num_layers
        return value[: len(self.options)] if by_layer else value

    def _quantization(self) -> dict[str, Any] | None:
        modules, kept = {}, [self.graph.head]
        for layer, precision in enumerate(self.options):
            for linear in self.graph.kind_of(layer).linears:
                name = f"{self.graph.layer_names[layer]}.{linear.name}"
                if precision.is_quantized and linear.is_quantizable:
                    modules[name] = (precision, linear.in_features)
                else:
                    kept.append(name)
        return quantization_config(modules, kept)


def arrangements(graph: LayerGraph, precisions: tuple[Precision, ...], device_type: DeviceType) -> tuple[Arrangement, ...]:
    """One in which every kind of layer is there at every precision, their weights together beyond any cache; of a model with too
    few layers of a kind one for each precision. A kind that vLLM does not run at a precision stays at 16 bits."""
    counts = Counter(graph.layer_kind)
    if all(counts[kind] >= len(precisions) for kind in range(len(graph.kinds))):
        return (_arranged(graph, precisions, device_type),)
    return tuple(_arranged(graph, (precision,), device_type) for precision in precisions)


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """The folder, as a model that vLLM can be asked to load without weights."""
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


def runs_in_vllm(kind: LayerKind, precision: Precision, device_type: DeviceType) -> bool:
    return layer_support("vllm", device_type, precision, kind).level != "unsupported"


def _arranged(graph: LayerGraph, precisions: tuple[Precision, ...], device_type: DeviceType) -> Arrangement:
    seen: Counter[int] = Counter()
    options: list[Precision] = []
    nbytes = 0
    for kind in graph.layer_kind:
        if nbytes >= WORKING_SET and all(seen[k] >= len(precisions) for k in range(len(graph.kinds))):
            break
        wanted = precisions[seen[kind] % len(precisions)]
        options.append(wanted if runs_in_vllm(graph.kinds[kind], wanted, device_type) else PRECISIONS["16"])
        nbytes += graph.kinds[kind].weight_bytes(options[-1])
        seen[kind] += 1
    return Arrangement(graph, tuple(options))
