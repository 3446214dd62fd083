"""Module files: a module of the user's written down as compile reads models, weights and configuration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmpq.errors import InputError
from llmpq.frontend.models import CONFIG_FILE, ModelSource

if TYPE_CHECKING:
    from torch import nn

MODULE_TYPE = "module"  # model_type of what transformers cannot build


def with_files(source: ModelSource, folder: Path) -> ModelSource:
    """The source of a module with its weights in `folder`: as transformers writes its models, of others each tensor once.

    A module that transformers cannot build stays in the source, without weights. Raises InputError when weights are missing.
    """
    from transformers import PreTrainedModel

    module = source.module
    if module is None:
        return source
    if any(parameter.is_meta for parameter in module.parameters()):
        raise InputError(f"{source.name} has parameters on the meta device, without weights; `plan` takes it, `compile` does not")
    if isinstance(module, PreTrainedModel):
        module.save_pretrained(folder)
        return ModelSource(source.name, directory=folder, config=folder / CONFIG_FILE)
    _save(module, folder)
    return replace(source, directory=folder, module=without_weights(module))


def without_weights(module: "nn.Module") -> "nn.Module":
    """A copy whose parameters are on the meta device; buffers are shared."""
    from llmpq.frontend.build import move_parameters
    from llmpq.fx.modules import copy_sharing_tensors

    copied = copy_sharing_tensors(module)
    move_parameters(copied)
    return copied


def with_module(source: ModelSource, module: "nn.Module | None") -> ModelSource:
    """The source of an output directory: its own configuration, or the module that it was compiled from.

    Raises InputError when the directory was compiled from a module and none is given.
    """
    if module is not None:
        return replace(source, config=None, module=without_weights(module))
    config = json.loads(source.config.read_text(encoding="utf-8")) if source.config is not None else {}
    if config.get("model_type") == MODULE_TYPE:
        name = config["architectures"][0]
        raise InputError(f"{source.directory}: was compiled from a {name} of yours; give it: llmpq.load(directory, module)")
    return source


def _save(module: "nn.Module", folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: parameter.detach().contiguous() for name, parameter in module.named_parameters()}
    kept = module.state_dict(keep_vars=True)
    tensors |= {name: buffer.detach().contiguous() for name, buffer in module.named_buffers() if name in kept}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = {"architectures": [type(module).__name__], "model_type": MODULE_TYPE}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
