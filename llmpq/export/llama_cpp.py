"""LlamaCppTarget: a plan as the commands that make and serve a GGUF file with llama.cpp, for cards that vLLM has left behind."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote
from typing import ClassVar

from llmpq.export.device_map import one_host
from llmpq.graph import LayerGraph
from llmpq.hardware.cluster import Device
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.layer_option import SEPARATOR, parse_option
from llmpq.plan import Plan
from llmpq.printing import format_ranges

QUANTIZE_FILE, LAUNCH_FILE = "quantize.sh", "launch.sh"
GGML_TYPES = {"16": "f16", "w8a16": "q8_0", "w4a16": "q4_0"}
HOST_CPU = "CPU"  # llama.cpp's name of the processor's own buffers
BACKENDS = {"cuda": "CUDA", "rocm": "ROCm"}

QUANTIZE = """#!/usr/bin/env bash
# Makes model.gguf at the plan's precisions from the original model:
#   LLAMA_CPP=/path/to/llama.cpp ./quantize.sh /path/to/original-model
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
original="${{1:?give the directory of the original 16-bit model}}"
python3 "$LLAMA_CPP/convert_hf_to_gguf.py" "$original" --outtype f16 --outfile {converted}
"""
LAUNCH = """#!/usr/bin/env bash
# Serves model.gguf over the plan's devices: LLAMA_CPP=/path/to/llama.cpp ./launch.sh [any other option of llama-server]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export CUDA_DEVICE_ORDER=PCI_BUS_ID
"""
README = """# {model} in llama.cpp

```
LLAMA_CPP=/path/to/llama.cpp ./quantize.sh /path/to/original-model   # once: model.gguf
LLAMA_CPP=/path/to/llama.cpp ./launch.sh                             # llama-server
```

The GGUF file is made from the original, whose weights llama.cpp rounds itself, in blocks of 32: the plan's precisions become
{types}. Embedding and head stay at 16 bits, as in the plan.

| stage | device | llama.cpp | layers |
|---|---|---|---|
{rows}

`--tensor-split` counts layers, and one more for the head, which llama.cpp counts as a layer of the last device.
{notes}
The commands follow llama.cpp's documentation and source; they were not run on a card.
"""
CPU_NOTE = (
    "Layers planned for the processor are kept there by `--override-tensor`; their caches go where `--tensor-split` puts them.\n"
)


@dataclass(frozen=True, slots=True)
class LlamaCppTarget:
    name: ClassVar[str] = "llama.cpp"
    with_weights: ClassVar[bool] = False
    marker: ClassVar[str] = QUANTIZE_FILE

    def unsupported(self, plan: Plan, graph: LayerGraph) -> list[str]:
        """Precisions that no ggml type holds, layers of two precisions, and several hosts: how llama.cpp names remote devices
        differs by version."""
        found: dict[str, str] = {}
        for stage in plan.stages:
            device = plan.cluster.device(stage.device)
            for layer, option in zip(stage.layers, stage.options):
                if SEPARATOR in option:
                    reason = "the script sets one type for a layer; plan with --granularity layer"
                    found.setdefault(option, f"layer {layer} is {option}: {reason}")
                    continue
                answer = layer_support(self.name, device.type, parse_option(option), graph.kind_of(layer))
                if answer.level == "unsupported":
                    remedy = "plan with --engine llama.cpp"
                    found.setdefault(option, f"layer {layer} is {option}: {answer.reason} [{answer.source}]; {remedy}")
        return [*found.values(), *one_host(plan)]

    def files(self, plan: Plan, graph: LayerGraph, modules: Mapping[str, int]) -> dict[str, str]:
        return {QUANTIZE_FILE: quantize_script(plan), LAUNCH_FILE: launch_script(plan), "README.md": _readme(plan)}


def quantize_script(plan: Plan) -> str:
    """The commonest quantized type for all, and an expression over layers for every type: overrides need a quantized base."""
    quantized = Counter(option for option in plan.options if parse_option(option).is_quantized)
    if not quantized:
        return QUANTIZE.format(converted="model.gguf")
    (base, _), *_ = quantized.most_common(1)
    types = ["--output-tensor-type f16", "--token-embedding-type f16"]
    types += [
        f"--tensor-type {quote(_expression(_layers_at(plan, option)) + '=' + GGML_TYPES[option])}"
        for option in sorted(set(plan.options))
    ]
    command = ['"$LLAMA_CPP/build/bin/llama-quantize"', *types, f"model-f16.gguf model.gguf {GGML_TYPES[base]}"]
    return QUANTIZE.format(converted="model-f16.gguf") + " \\\n  ".join(command) + "\n"


def launch_script(plan: Plan) -> str:
    """Layers by --tensor-split over the plan's accelerators, those of a processor by --override-tensor."""
    names = _backend_names(plan)
    on_cards = [(name, len(stage.layers)) for name, stage in zip(names, plan.stages) if name != HOST_CPU]
    arguments = ["--model model.gguf", *_context(plan)]
    if on_cards:
        shares = [count for _, count in on_cards]
        shares[-1] += 1
        arguments += [
            "--n-gpu-layers 999",
            "--split-mode layer",
            f"--device {quote(','.join(name for name, _ in on_cards))}",
            f"--tensor-split {','.join(map(str, _spread(plan, names, shares)))}",
        ]
    else:
        arguments.append("--n-gpu-layers 0")
    arguments += [
        f"--override-tensor {quote(_expression(tuple(stage.layers)) + '=' + HOST_CPU)}"
        for name, stage in zip(names, plan.stages)
        if name == HOST_CPU and on_cards
    ]
    return LAUNCH + " \\\n  ".join(['exec "$LLAMA_CPP/build/bin/llama-server"', *arguments, '"$@"']) + "\n"


def _spread(plan: Plan, names: list[str], shares: list[int]) -> list[int]:
    """llama.cpp deals all layers out over the cards: those of the processor count with the card before (or after) them."""
    spread, card = list(shares), 0
    for name, stage in zip(names, plan.stages):
        if name == HOST_CPU:
            spread[max(card - 1, 0)] += len(stage.layers)
        else:
            card += 1
    return spread


def _context(plan: Plan) -> list[str]:
    """Every sequence at its longest: llama-server shares one cache among its slots."""
    workload = plan.batch
    length = workload.batch_size * (workload.prompt_len + workload.gen_len)
    return [f"--ctx-size {length}", f"--parallel {workload.batch_size}"]


def _backend_names(plan: Plan) -> list[str]:
    """What llama.cpp calls the device of each stage."""
    return [_backend_name(plan, plan.cluster.device(stage.device)) for stage in plan.stages]


def _backend_name(plan: Plan, device: Device) -> str:
    if device.type.kind == "cpu":
        return HOST_CPU
    alike = [other.name for other in plan.cluster.devices if (other.host, other.type.kind) == (device.host, device.type.kind)]
    return f"{BACKENDS[device.type.kind]}{alike.index(device.name)}"


def _layers_at(plan: Plan, option: str) -> tuple[int, ...]:
    return tuple(layer for layer, kept in enumerate(plan.options) if kept == option)


def _expression(layers: tuple[int, ...]) -> str:
    """A regular expression over the tensors of these layers."""
    return rf"blk\.({'|'.join(map(str, layers))})\."


def _readme(plan: Plan) -> str:
    names = _backend_names(plan)
    rows = [
        f"| {index} | {stage.device} | {name} | {format_ranges(stage.options, stage.first_layer)} |"
        for index, (stage, name) in enumerate(zip(plan.stages, names))
    ]
    types = ", ".join(f"{option} → {GGML_TYPES[option].upper()}" for option in sorted(set(plan.options)))
    notes = CPU_NOTE if HOST_CPU in names else ""
    return README.format(model=plan.model, types=types, rows="\n".join(rows), notes=notes)
