"""Rank environment: what tells a rank which device it plays, by environment variables, and how it obeys."""

import os

LINK = "HETERO_LINK"  # bytes per second at which a rank hands its tensors to the next one; empty: as fast as it can
ISA = "HETERO_ISA"
GLOO = "HETERO_GLOO"  # set: ranks hand their tensors over by gloo
AVX2 = "CPU-AVX2"  # the device type whose ranks use no wider instructions, in torch, oneDNN and vLLM's own kernels
WIDER = ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_vnni_supported", "_is_amx_tile_supported")


def variables(device_type: str) -> dict[str, str]:
    """What a rank of that device type starts with."""
    return {ISA: AVX2, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"} if device_type == AVX2 else {}


def obey() -> None:
    """vLLM asks torch which of its builds to load, and knows no variable for it: torch answers no. Before vLLM is imported."""
    if os.environ.get(ISA) != AVX2:
        return
    import torch

    for name in WIDER:
        if hasattr(torch.cpu, name):
            setattr(torch.cpu, name, lambda: False)
