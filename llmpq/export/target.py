"""Targets: the engines that a compiled model can be handed to, by name, each imported when it is used."""

import os
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Protocol

from llmpq.checkpoint.replacing import replacing
from llmpq.errors import BackendError, InputError
from llmpq.graph import LayerGraph
from llmpq.plan import Plan
from llmpq.suggest import did_you_mean

TARGETS: dict[str, str] = {
    "vllm": "llmpq.export.vllm:VllmTarget",
    "transformers": "llmpq.export.transformers_target:TransformersTarget",
    "device-map": "llmpq.export.device_map:DeviceMapTarget",
    "llama.cpp": "llmpq.export.llama_cpp:LlamaCppTarget",
}
WEIGHTS = "model"  # the folder of an export that holds the compiled checkpoint
EXECUTABLE = 0o755


class Target(Protocol):
    """Writes what one engine needs to run a plan. Ask `unsupported` first."""

    name: ClassVar[str]
    with_weights: ClassVar[bool]
    marker: ClassVar[str]

    def unsupported(self, plan: Plan, graph: LayerGraph) -> list[str]:
        """Why the engine cannot run the plan, one sentence each; empty when it can."""

    def files(self, plan: Plan, graph: LayerGraph, modules: Mapping[str, int]) -> dict[str, str]:
        """File name -> text, `marker` among them; modules: of the traced model, and their stages."""


def find_target(name: str) -> Target:
    """The target of that name; raises InputError that lists the known ones."""
    if name not in TARGETS:
        raise InputError(f"--to {name!r} is unknown; known are {', '.join(TARGETS)}{did_you_mean(name, TARGETS)}")
    module, attribute = TARGETS[name].split(":")
    target: Target = getattr(import_module(module), attribute)()
    return target


def write_export(
    target: Target,
    plan: Plan,
    graph: LayerGraph,
    modules: Mapping[str, int],
    weights: Path,
    directory: Path,
    *,
    link: bool = False,
) -> None:
    """The export of the compiled checkpoint in `weights`, in `directory`, which must be new, empty or an export to this target.

    Weights are hard links where the file system has them, else copies; `link`: one symbolic link instead.
    Raises BackendError with the reasons when the engine cannot run the plan.
    """
    reasons = target.unsupported(plan, graph)
    if reasons:
        raise BackendError(f"{target.name} cannot run this plan", tuple(reasons))
    with replacing(directory, lambda path: (path / target.marker).is_file()) as partial:
        for name, text in target.files(plan, graph, modules).items():
            (partial / name).write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                (partial / name).chmod(EXECUTABLE)
        if target.with_weights and link:
            (partial / WEIGHTS).symlink_to(weights.resolve(), target_is_directory=True)
        elif target.with_weights:
            shutil.copytree(weights, partial / WEIGHTS, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
