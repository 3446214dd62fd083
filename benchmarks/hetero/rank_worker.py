"""RankWorker: llmpq's worker of vLLM, made fit for a benchmark of unlike devices: in a namespace of its own, without spinning."""

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import zmq  # type: ignore[import-not-found]
from llmpq_vllm_plugin import Worker  # type: ignore[import-not-found]
from rank_environment import NAMESPACE
from vllm.distributed.device_communicators import shm_broadcast  # type: ignore[import-not-found]

POLL_MS = 1
CLONE_NEWNET = 0x40000000


def do_not_spin() -> None:
    """Readers poll for a message every millisecond instead of spinning: what a throttled rank spins away is its own share.

    vLLM's notifications alone do not do: one that is sent while the last is under way is dropped.
    """

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        events = dict(self.poller.poll(timeout=POLL_MS))
        if self.local_notify_socket in events:
            self.local_notify_socket.recv(flags=zmq.NOBLOCK, copy=False)

    shm_broadcast.SpinCondition.wait = wait


class RankWorker(Worker):  # type: ignore[misc]
    """The plugin's worker; what a benchmark asks of it are methods, called by `collective_rpc`."""

    def init_device(self) -> None:
        path = os.environ.get(NAMESPACE)
        if path:
            enter_namespace(path)
        super().init_device()

    def rank_facts(self) -> dict[str, Any]:
        """Process id, instruction set, bytes of weights and of the cache, and the CPU time up to now."""
        import torch

        seen = {}
        tensors = [*self.model_runner.model.parameters(), *self.model_runner.model.buffers()]
        for tensor in tensors:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        cache = {kv.untyped_storage().data_ptr(): kv.untyped_storage().nbytes() for kv in self.model_runner.kv_caches}
        return {
            "pid": os.getpid(),
            "ident": os.environ["VLLM_DIST_IDENT"],
            "capability": torch.backends.cpu.get_cpu_capability(),
            "weight_bytes": sum(seen.values()),
            "kv_bytes": sum(cache.values()),
            "cpu_s": time.process_time(),
        }


def enter_namespace(path: str) -> None:
    """Move this thread, and those that it starts from now on, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(path).open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"{path}: setns failed; root is needed")


do_not_spin()
