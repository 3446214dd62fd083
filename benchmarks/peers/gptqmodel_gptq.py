"""GPTQ by gptqmodel, in an environment of its own: python gptqmodel_gptq.py MODEL WINDOWS.json BITS GROUP OUT.safetensors."""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # fewer are refused

import torch
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file, save_file


def dequantized(parts: dict[str, torch.Tensor], name: str, bits: int) -> torch.Tensor:
    """[out, in] of qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], scales [groups, out], g_idx [in]."""
    fields = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = 2**bits - 1
    codes = (parts[f"{name}.qweight"][:, None, :] >> fields[None, :, None]) & mask
    zeros = (parts[f"{name}.qzeros"][:, :, None] >> fields[None, None, :]) & mask
    codes, zeros = codes.flatten(0, 1), zeros.flatten(1) + 1  # gptq_v1 stores zero points less one
    groups = parts[f"{name}.g_idx"].long()
    return ((codes - zeros[groups]).float() * parts[f"{name}.scales"].float()[groups]).t().contiguous()


def main() -> None:
    """Writes the weights of all linears but the head, as they multiply after quantizing, in fp32."""
    directory, windows, bits, group, out = sys.argv[1:]
    rows = json.loads(Path(windows).read_text())
    config = QuantizeConfig(bits=int(bits), group_size=int(group), sym=True)
    model = GPTQModel.load(directory, config)
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    with TemporaryDirectory() as folder:
        model.save(folder)
        parts = {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}
    names = [name.removesuffix(".qweight") for name in parts if name.endswith(".qweight")]
    save_file({name: dequantized(parts, name, int(bits)) for name in names}, out)


if __name__ == "__main__":
    main()
