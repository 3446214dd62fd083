"""Messages: the processor's time that a stage's process spends on a decode step beside computing it, most of it on messages."""

import time
from collections.abc import Callable
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmpq.generation import SamplingParams
from llmpq.profiling.two_processes import TIMEOUT_S, joined
from llmpq.runtime.batching import Step
from llmpq.runtime.channels import AHEAD, Frame, Incoming, Outgoing
from llmpq.runtime.engine import Engine
from llmpq.runtime.job import Job, generate_job
from llmpq.runtime.progress import Progress
from llmpq.runtime.spec import PipelineSpec
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import Message
from llmpq.workload import Batch

ROWS = 4  # sequences of a step: at one position each its bytes hardly matter
WARM_UP, STEPS = 10, 60
WEIGHTS = 48 * 2**20  # bytes that a stage reads in every step, so that it finds nothing of its messages in a cache
VOCABULARY = 64


def measure_message(hidden_size: int) -> float:
    """Processor seconds of a process, all its threads, that it spends on a decode step beside computing it.

    By the runtime itself, two stages in two processes of this machine that compute nothing but read memory. Raises BackendError
    when the other does not answer.
    """
    with joined(__name__, hidden_size):
        own = _seconds(0, hidden_size, _lead)
        others = torch.zeros(1, dtype=torch.float64)
        dist.recv(others, 1)
        return fmean((own, float(others)))


def answer(hidden_size: int) -> None:
    """The other end."""
    own = _seconds(1, hidden_size, lambda engine, job: engine.follow(job))
    dist.send(torch.tensor([own], dtype=torch.float64), 0)


def _seconds(rank: int, hidden_size: int, run: Callable[[Engine, Job], None]) -> float:
    stage = _Reader(hidden_size, is_last=rank == 1)
    spec = _spec(hidden_size)
    engine = Engine(spec, {rank: stage}, (_Place(1 - rank, spec),), on_action=stage.computed)
    run(engine, _job(WARM_UP))
    start, read = time.process_time(), stage.computed_s
    run(engine, _job(STEPS))
    return (time.process_time() - start - (stage.computed_s - read)) / STEPS


def _lead(engine: Engine, job: Job) -> None:
    for _ in engine.run(Progress(job)):
        pass


class _Reader(Stage):
    """A stage that reads WEIGHTS bytes in a step; `computed_s`: processor seconds of its thread in that, emitting included."""

    def __init__(self, hidden_size: int, is_last: bool) -> None:
        super().__init__(nn.Identity(), {}, torch.bfloat16)
        self._weights = torch.zeros(WEIGHTS // torch.int64.itemsize, dtype=torch.int64)
        self._width, self._start_s, self.computed_s = VOCABULARY if is_last else hidden_size, 0.0, 0.0

    def reserve(self, slots: int, slot_len: int, planned: int = 0) -> None:
        """It keeps no cache."""

    def run(self, step: Step, x: Tensor) -> Tensor:
        self._start_s = time.thread_time()
        return torch.zeros(len(step.rows), x.shape[1], self._width, dtype=torch.bfloat16) + self._weights.sum()

    def computed(self, stage: int, action: Action, start: float, end: float) -> None:
        """The OnAction of its worker."""
        self.computed_s += time.thread_time() - self._start_s


class _Place:
    """A Transport between two processes, each both before and after the other."""

    def __init__(self, peer: int, spec: PipelineSpec) -> None:
        emits, cpu = Frame(ROWS, ROWS * torch.int64.itemsize), torch.device("cpu")
        hidden = Frame(ROWS, ROWS * spec.row_bytes)
        comes, goes = (hidden, emits) if peer == 0 else (emits, hidden)
        self._incoming: Callable[[], Incoming] = lambda: Incoming(peer, cpu, comes, AHEAD)
        self._outgoing = Outgoing(peer, cpu, goes, AHEAD)

    def begin(self) -> None:
        self._from = self._incoming()

    def send(self, message: Message) -> None:
        self._outgoing.put(message, TIMEOUT_S)

    def receive(self) -> Message:
        if (message := self._from.next(TIMEOUT_S)) is None:
            raise TimeoutError(f"no message for {TIMEOUT_S:.0f} s")
        return message

    def flush(self) -> None:
        self._outgoing.is_flushed(TIMEOUT_S)


def _spec(hidden_size: int) -> PipelineSpec:
    return PipelineSpec(
        devices=("CPU:0", "CPU:1"),
        hosts=("a", "a"),
        layers=({}, {}),
        compute_dtype="bfloat16",
        workload=Batch(ROWS, 1, STEPS),
        prefill_micro_batch=ROWS,
        decode_micro_batch=ROWS,
        vocab_size=VOCABULARY,
        max_positions=STEPS + 1,
        hidden_size=hidden_size,
    )


def _job(steps: int) -> Job:
    return generate_job([[row] for row in range(ROWS)], SamplingParams(steps))
