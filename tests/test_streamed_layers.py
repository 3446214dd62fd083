"""Streamed layers: the model's own hidden states, one layer's weights at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmpq.errors import QuantizationError
from llmpq.frontend.build import build_model
from llmpq.frontend.tracing import decoder_layers, trace
from llmpq.quantization.activations import Activations
from llmpq.quantization.streamed_layers import StreamedLayers
from tests.tiny_models import CONFIGS, VOCABULARY, tiny_config, tiny_model

WINDOWS = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(3))


def hidden_states(model: Any) -> list[Tensor]:
    """Of every layer, what it makes of each window, [windows, tokens, hidden]."""
    found: dict[str, list[Tensor]] = {name: [] for name in decoder_layers(model)}
    for name, layer in decoder_layers(model).items():
        layer.register_forward_hook(lambda module, inputs, output, name=name: found[name].append(_hidden(output)))
    with torch.no_grad():
        for window in WINDOWS:
            model(input_ids=window[None], use_cache=False)
    return [torch.cat(outputs) for outputs in found.values()]


def _hidden(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def streamed(family: str, tensors: dict[str, Tensor], activations: Activations) -> list[Tensor]:
    """The same through a model that has no weights but those it is given layer by layer."""
    empty = build_model(tiny_config(family))
    names = list(decoder_layers(empty))
    run = StreamedLayers(trace(empty), names, WINDOWS, tensors, activations, torch.device("cpu"))
    found = []
    with torch.no_grad():
        for name in names:
            run.enter(name)
            layer = run.layer(name, tensors)
            found.append(torch.cat([_hidden(run.call(layer, window)) for window in range(run.num_windows)]))
            run.leave(layer)
    assert all(parameter.is_meta for parameter in empty.parameters())
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_hidden_states_equal_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    found = streamed(family, dict(model.state_dict()), Activations(tmp_path, 1 << 30))
    for ours, theirs in zip(found, hidden_states(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_activations_beyond_the_limit_lie_in_files_without_names_and_are_the_same(tmp_path: Path) -> None:
    tensors = dict(tiny_model("llama").state_dict())
    inside, outside = Activations(tmp_path, 1 << 30), Activations(tmp_path, 0)
    assert all(map(torch.equal, streamed("llama", tensors, inside), streamed("llama", tensors, outside)))
    assert inside.spilled_bytes == 0 < outside.spilled_bytes
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_the_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    tensors = dict(tiny_model("llama").state_dict())
    del tensors["model.layers.2.mlp.up_proj.weight"]
    with pytest.raises(QuantizationError, match=r"model.layers.2.mlp.up_proj.weight is not in the checkpoint"):
        streamed("llama", tensors, Activations(tmp_path, 0))
