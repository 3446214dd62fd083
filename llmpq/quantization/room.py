"""Room: whether a whole model in fp32 fits in this machine's memory, as measuring it needs."""

from math import prod

from llmpq.checkpoint.reader import Checkpoint
from llmpq.hardware.local_devices import host_memory
from llmpq.units import format_bytes

SHARE = 0.8  # of the memory that is free, the rest for activations and log-probabilities
FP32_BYTES = 4


def no_room_for(checkpoint: Checkpoint) -> str | None:
    """Why the model cannot be run here, in one line; None where it can."""
    needed = FP32_BYTES * sum(prod(checkpoint.shape(name)) for name in checkpoint.names)
    free = host_memory()
    if needed <= SHARE * free:
        return None
    return f"the model needs {format_bytes(needed)} in fp32, and this machine has {format_bytes(free)} of memory free"
