"""Two processes: this one and a second of this machine, joined by gloo over loopback, for what is measured between them."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module

import torch.distributed as dist

from llmpq.errors import BackendError
from llmpq.runtime.channels import Broken

TIMEOUT_S = 60.0
SECOND = "from llmpq.profiling.two_processes import second; second({port}, {module!r}, {arguments})"


@contextmanager
def joined(module: str, *arguments: int) -> Iterator[None]:
    """Inside, this process is rank 0; rank 1 runs `answer(*arguments)` of the module and is ended at the end.

    Raises BackendError when it does not answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    code = SECOND.format(port=port, module=module, arguments=arguments)
    other = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)  # Ctrl-C is for this process
    try:
        _join(port, 0)
        yield
    except (RuntimeError, dist.DistError, Broken, TimeoutError) as error:
        raise BackendError(
            f"the process at the other end of the link did not answer: {error}; try again, or --no-link"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        other.kill()
        other.wait()


def second(port: int, module: str, arguments: tuple[int, ...]) -> None:
    """Rank 1, until the first process ends it."""
    _join(port, 1)
    import_module(module).answer(*arguments)
    time.sleep(TIMEOUT_S)


def _join(port: int, rank: int) -> None:
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timeout)
