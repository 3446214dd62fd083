"""RankWorker: llmpq's worker of vLLM, fit for a benchmark of unlike devices: without spinning, over a link as slow as asked."""

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import zmq  # type: ignore[import-not-found]
from llmpq_vllm_plugin import Worker  # type: ignore[import-not-found]
from rank_environment import GLOO, LINK
from vllm.distributed import get_pp_group  # type: ignore[import-not-found]
from vllm.distributed.device_communicators import cpu_communicator, shm_broadcast  # type: ignore[import-not-found]

POLL_MS = 1


def do_not_spin() -> None:
    """Readers poll for a message every millisecond instead of spinning: what a throttled rank spins away is its own share.

    vLLM's notifications alone do not do: one that is sent while the last is under way is dropped.
    """

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        events = dict(self.poller.poll(timeout=POLL_MS))
        if self.local_notify_socket in events:
            self.local_notify_socket.recv(flags=zmq.NOBLOCK, copy=False)

    shm_broadcast.SpinCondition.wait = wait


def send_by_gloo() -> None:
    """Through shared memory a rank that waits for tensors spins, and what a throttled rank spins away is its own share. vLLM's
    build for AVX2 has no such transport and does not ask for it; the other build would wait for its answer for ever."""
    cpu_communicator.CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False


class RankWorker(Worker):  # type: ignore[misc]
    """The plugin's worker; what a benchmark asks of it are methods, called by `collective_rpc`."""

    def init_device(self) -> None:
        if os.environ.get(GLOO):
            send_by_gloo()
        super().init_device()
        self._parts: Counter[str] = Counter()
        if bandwidth := os.environ.get(LINK):
            slow_sends(get_pp_group(), float(bandwidth))
        group = get_pp_group()
        group.irecv_tensor_dict = self._counted("receive", group.irecv_tensor_dict)
        group.isend_tensor_dict = self._counted("send", group.isend_tensor_dict)

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        return self._counted("step", super().execute_model)(*args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        return self._counted("sample", super().sample_tokens)(*args, **kwargs)

    def parts(self) -> dict[str, float]:
        """Seconds since the last call, by the clock and of CPU, of steps (receiving and sending included), of receiving, of
        sending, of sampling; their number; CPU seconds of the whole process."""
        found = {name: round(value, 4) for name, value in self._parts.items()}
        used = time.process_time()
        self._parts.clear()
        self._parts["since"] = used
        since = found.pop("since", used)
        return found | {"process_cpu_s": round(used - since, 4)}

    def _counted(self, what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            started, used = time.perf_counter(), time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._parts[f"{what}s"] += 1
                self._parts[f"{what}_s"] += time.perf_counter() - started
                self._parts[f"{what}_cpu_s"] += time.thread_time() - used

        return counted

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


def slow_sends(group: Any, bandwidth_bytes_per_s: float) -> None:
    """A rank is held while its tensors would travel: vLLM's ranks of one host hand them over in shared memory, past any `tc`."""
    send = group.isend_tensor_dict

    def slowly(tensors: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        time.sleep(sum(tensor.nbytes for tensor in tensors.values()) / bandwidth_bytes_per_s)
        return send(tensors, *args, **kwargs)

    group.isend_tensor_dict = slowly


do_not_spin()
