"""GPTQ by llmcompressor, in its own environment: python llmcompressor_gptq.py MODEL WINDOWS.json BITS GROUP OUT.safetensors."""

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Writes the weights of all linears but the head, as they multiply after quantizing, in fp32."""
    directory, windows, bits, group, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    rows = json.loads(Path(windows).read_text())
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    weights = QuantizationArgs(num_bits=int(bits), symmetric=True, strategy="group", group_size=int(group))
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    recipe = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    length = len(rows[0])
    oneshot(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(directory),
        dataset=data,
        recipe=recipe,
        max_seq_length=length,
        num_calibration_samples=len(rows),
    )
    found = {
        name: module.weight.detach().float().contiguous()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    save_file(found, out)


if __name__ == "__main__":
    main()
