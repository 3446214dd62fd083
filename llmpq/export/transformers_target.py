"""TransformersTarget: a compiled model as transformers loads it, on one device or by the plan's device map."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from llmpq.export.device_map import DeviceMapTarget, one_host
from llmpq.graph import LayerGraph
from llmpq.hardware.kernel_shapes import layer_support
from llmpq.layer_option import parse_option
from llmpq.plan import Plan
from llmpq.precision import PRECISIONS

SCRIPT_FILE = "generate.py"
SCRIPT = '''"""Continue a prompt with the model beside this file: python generate.py "PROMPT" [--device-map]."""

import argparse
import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt")
parser.add_argument("--device-map", action="store_true", help="the plan's devices (needs accelerate); one device otherwise")
parser.add_argument("--max-new-tokens", type=int, default=32)
arguments = parser.parse_args()

placement = {"device_map": json.loads((HERE / "device_map.json").read_text())} if arguments.device_map else {}
model = AutoModelForCausalLM.from_pretrained(HERE / "model", dtype="auto", **placement)
tokenizer = AutoTokenizer.from_pretrained(HERE / "model")
inputs = tokenizer(arguments.prompt, return_tensors="pt").to(model.device)
outputs = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
'''
README = """# {model} in transformers

`python generate.py "PROMPT"` runs it on one device, `--device-map` on the plan's ({devices}; needs accelerate).
Needs transformers 5 and compressed-tensors.

transformers decompresses a quantized linear when it is first used: after that the model takes the memory of 16 bits, {dense} in
place of {stored} of layers. For the plan's memory use vLLM, or `llmpq run`.
"""


@dataclass(frozen=True, slots=True)
class TransformersTarget:
    name: ClassVar[str] = "transformers"
    with_weights: ClassVar[bool] = True
    marker: ClassVar[str] = SCRIPT_FILE

    def unsupported(self, plan: Plan, graph: LayerGraph) -> list[str]:
        """Precisions that it does not read, and a device map over several hosts."""
        found = {}
        for stage in plan.stages:
            device = plan.cluster.device(stage.device)
            for layer, option in zip(stage.layers, stage.options):
                answer = layer_support(self.name, device.type, parse_option(option), graph.kind_of(layer))
                if answer.level == "unsupported":
                    found[option] = f"layer {layer} is {option}: {answer.reason} [{answer.source}]"
        return [*found.values(), *one_host(plan)]

    def files(self, plan: Plan, graph: LayerGraph, modules: Mapping[str, int]) -> dict[str, str]:
        return {
            SCRIPT_FILE: SCRIPT,
            "README.md": _readme(plan, graph),
            **DeviceMapTarget().files(plan, graph, modules),
        }


def _readme(plan: Plan, graph: LayerGraph) -> str:
    from llmpq.units import format_bytes

    dense = sum(graph.kind_of(layer).weight_bytes(PRECISIONS["16"]) for layer in range(graph.num_layers))
    stored = sum(graph.kind_of(layer).weight_bytes(parse_option(option)) for layer, option in enumerate(plan.options))
    devices = ", ".join(stage.device for stage in plan.stages)
    return README.format(model=plan.model, devices=devices, dense=format_bytes(dense), stored=format_bytes(stored))
