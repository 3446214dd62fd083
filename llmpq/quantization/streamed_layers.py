"""StreamedLayers: a traced model run over many windows side by side, with the weights of one layer in memory at a time."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from llmpq.errors import QuantizationError
from llmpq.fx.example_calls import ExampleCalls
from llmpq.fx.graphs import placeholders, reads_shape_only
from llmpq.fx.modules import copy_sharing_tensors
from llmpq.fx.split_linears import split_linears
from llmpq.quantization.activations import Activations


class NoCache:
    """Stands for the KV cache in a pass over whole sequences: attention sees the keys and values of this pass alone."""

    wants_every_position = True

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return key, value


class StreamedLayers:
    """Goes through the graph once. For each layer in turn: `enter`, any number of `call`s, `leave`.

    module: the traced graph, its parameters without memory; windows: [windows, tokens] token ids; tensors: the model's, by
    name, read when they are asked for. Everything is computed in fp32 on `device`; what the token ids cannot decide
    (masks, positions) is computed once.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        layer_names: Sequence[str],
        windows: Tensor,
        tensors: Mapping[str, Tensor],
        activations: Activations,
        device: torch.device,
    ) -> None:
        self._module, self._tensors, self._device, self._activations = module, tensors, device, activations
        self._windows = windows
        self._by_window = _decided_by_ids(module)
        self._nodes = list(module.graph.nodes)
        self._calls = {str(node.target): i for i, node in enumerate(self._nodes) if node.target in set(layer_names)}
        self._last_use = {source: i for i, node in enumerate(self._nodes) for source in node.all_input_nodes}
        self._values: dict[fx.Node, list[Any]] = {}
        self._next = 0

    @property
    def num_windows(self) -> int:
        return len(self._windows)

    def enter(self, name: str) -> None:
        """Computes what stands before the layer `name`, which must be the next one."""
        while self._next < self._calls[name]:
            node = self._nodes[self._next]
            self._finish(partial(self._execute, node))

    def call(self, layer: nn.Module, window: int) -> Any:
        """What `layer` makes of a window, in the place of the layer that was entered."""
        args, kwargs = self._inputs(self._nodes[self._next], window)
        return layer(*args, **kwargs)

    def leave(self, layer: nn.Module) -> None:
        """Goes on behind the layer that was entered, with what `layer` makes of every window."""
        self._finish(partial(self.call, layer))

    def layer(self, name: str, tensors: Mapping[str, Tensor], linears: Collection[str] = ()) -> nn.Module:
        """The layer `name` with its share of `tensors`, in fp32; buffers that are not among them stay as they are.

        linears: paths within the layer that are to be linears of their own, as `tensors` has them.
        """
        return self._filled(name, tensors, _wide, linears)

    def _finish(self, compute: Callable[[int], Any]) -> None:
        """The values of the node that is next, window by window; what nobody needs any more is let go."""
        node, index = self._nodes[self._next], self._next
        done = [source for source in node.all_input_nodes if self._last_use[source] == index]
        count = self.num_windows if node in self._by_window else 1
        values: list[Any] = []
        for window in range(count):
            values.append(self._activations.keep(compute(window), count))
            for source in done:
                if len(self._values[source]) == count > 1:
                    self._values[source][window] = None
        for source in done:
            del self._values[source]
        if node in self._last_use:
            self._values[node] = values
        self._next += 1

    def _execute(self, node: fx.Node, window: int) -> Any:
        args, kwargs = self._inputs(node, window)
        if node.op == "placeholder":
            return self._placeholder(str(node.target), window)
        if node.op == "get_attr":
            return _wide(self._tensor(str(node.target)))
        if node.op == "call_module":
            return tree_map_only(Tensor, _wide, self._end(str(node.target))(*args, **kwargs))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _placeholder(self, name: str, window: int) -> Any:
        ids = self._windows[window][None]
        positions = torch.arange(ids.shape[1])[None]
        return {"input_ids": ids, "attention_mask": None, "position_ids": positions, "past_key_values": NoCache()}[name]

    def _inputs(self, node: fx.Node, window: int) -> tuple[Any, Any]:
        def value(source: fx.Node) -> Any:
            values = self._values[source]
            return tree_map_only(Tensor, lambda tensor: tensor.to(self._device), values[window if len(values) > 1 else 0])

        return fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)

    def _end(self, path: str) -> nn.Module:
        """A module outside the layers, with its weights; embeddings as stored, so that no row but those looked up is read."""
        is_table = isinstance(self._module.get_submodule(path), nn.Embedding)
        return self._filled(path, self._tensors, (lambda tensor: tensor) if is_table else _wide)

    def _tensor(self, path: str) -> Tensor:
        """A parameter or buffer that the graph reads itself."""
        owner, _, name = path.rpartition(".")
        found: Tensor = getattr(self._module.get_submodule(owner), name)
        return (self._tensors[path] if found.is_meta else found).to(self._device)

    def _filled(
        self, path: str, tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor], linears: Collection[str] = ()
    ) -> nn.Module:
        module = copy_sharing_tensors(self._module.get_submodule(path))
        split_linears(module, linears)
        names = {name: f"{path}.{name}" for name in module.state_dict()}
        state = {name: change(tensors[full]) for name, full in names.items() if full in tensors}
        module.load_state_dict(state, assign=True, strict=False)
        missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
        if missing:
            raise QuantizationError(f"{path}.{missing[0]} is not in the checkpoint; is config.json of another model?")
        return module.to(self._device).eval().requires_grad_(False)


def _decided_by_ids(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values may depend on the token ids; not those that ask the ids or hidden states for shapes alone."""
    found, calls = {placeholders(module.graph)["input_ids"]}, ExampleCalls(module)
    for node in module.graph.nodes:
        for source in node.all_input_nodes:
            if source in found and (node.op == "call_module" or not reads_shape_only(source, node, calls)):
                found.add(node)
    return found


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
