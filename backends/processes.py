"""ProcessesBackend: a process per stage on this machine, started and watched by this one, which keeps what they generate."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import ClassVar, Self

from torch import nn

from llmpq.backends.distributed import DistributedBackend
from llmpq.errors import InputError, LlmpqError, PeerError, StageLostError
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.runtime.heartbeat import PATIENCE, Patience
from llmpq.runtime.job import Job, decode, encode
from llmpq.runtime.pipeline_backend import PipelineBackend
from llmpq.runtime.process_group import Place
from llmpq.runtime.progress import NewToken, Progress
from llmpq.runtime.spec import pipeline_spec
from llmpq.runtime.stage_processes import Event, StageConnection, StageProcesses
from llmpq.runtime.start_up import StartUp
from llmpq.serialize import from_json, to_json

LoadStage = Callable[[int], nn.Module]
Recover = Callable[[Plan, str], tuple[Plan, LoadStage]]  # a plan and the device that it lost -> a plan without it
LEAVE_S = 10.0  # assumed: what a stage may take to leave when nothing is wanted any more


class ProcessesBackend(PipelineBackend):
    """Start it before this process computes anything; stages load when it is entered or first used, and leave at its end.

    A stage that dies, hangs or cannot be reached ends a job with a PeerError that names it and carries what all sequences had
    got; no process is left. With `recover` the job goes on instead, on the plan that it returns, from the tokens that are
    there; `on_notice` is told. The next job starts the stages again.
    """

    name: ClassVar[str] = "processes"

    def __init__(
        self,
        plan: Plan,
        graph: LayerGraph,
        load_stage: LoadStage,
        compute_dtype: ComputeDtype | None = None,
        patience: Patience = PATIENCE,
        recover: Recover | None = None,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(plan, graph, compute_dtype)
        self.plan = plan
        self._graph, self._load_stage, self._compute_dtype, self._patience = graph, load_stage, compute_dtype, patience
        self._recover, self._on_notice = recover, on_notice or (lambda notice: None)
        self._stages: StageProcesses | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of the stages, while they run."""
        return () if self._stages is None else tuple(process.pid or 0 for process in self._stages.processes)

    def start(self) -> None:
        """Start the stages and wait until all are loaded. Raises PeerError naming one that fails."""
        if self._stages is None:
            self._stages = StageProcesses(self._serve, self.spec.num_stages, self.spec.stage_name, self._patience)
            self._start_up = tuple(from_json(StartUp, item, "start-up") for item in self._next_event()["started"])

    def close(self) -> None:
        """Let the stages leave."""
        if self._stages is not None:
            self._stages.close(LEAVE_S)
            self._stages = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kill() if kind else self.close()

    def run(self, progress: Progress) -> Iterator[NewToken]:
        while True:
            try:
                yield from self._attempt(progress)
                return
            except PeerError as error:
                if self._recover is None or error.rank is None:
                    raise
                self._plan_again(error, error.rank, progress)
            except BaseException:  # the iterator was closed, or this process interrupted: nobody waits for the rest
                self._kill()
                raise

    def _attempt(self, progress: Progress) -> Iterator[NewToken]:
        self.start()
        assert self._stages is not None
        self._stages.ask(0, encode(replace(progress.job, generated=progress.generated)))
        while "done" not in (event := self._next_event()):
            if "token" in event:
                sequence, token, log_prob = event["token"]
                progress.append((sequence, token, log_prob))
                yield sequence, token, log_prob
            elif "scores" in event:
                progress.scores |= {int(sequence): tuple(values) for sequence, values in event["scores"].items()}

    def _next_event(self) -> Event:
        assert self._stages is not None
        try:
            return self._stages.next_event()
        except (PeerError, InputError):
            self._stages = None  # all of them were stopped
            raise

    def _plan_again(self, error: PeerError, rank: int, progress: Progress) -> None:
        """Take the plan without the lost device. Raises what planning raises, caused by the loss, when there is none."""
        assert self._recover is not None
        device = self.spec.devices[rank]
        try:
            self.plan, self._load_stage = self._recover(self.plan, device)
        except LlmpqError as impossible:
            told = StageLostError(f"{error}; it cannot go on without {device}: {impossible}")
            told.rank, told.reason = error.rank, error.reason
            raise told from impossible
        self.spec = pipeline_spec(self.plan, self._graph, self._compute_dtype)
        left = len(progress.job.sequences) - len(progress.ended)
        places = ", ".join(f"{stage.device} {len(stage.options)}" for stage in self.plan.stages)
        self._on_notice(f"{error}; planned again without {device} (layers: {places}), going on with {left} sequences")

    def _serve(self, place: Place, connection: StageConnection) -> None:
        """In a stage's process: load, and take part in every job."""
        rest = (self._compute_dtype, self._patience)
        with DistributedBackend(self.plan, self._graph, self._load_stage, *rest, place=place) as backend:
            if place.rank:
                backend.follow()
                return
            connection.tell(started=to_json(backend.start_up))
            while text := connection.next_request():
                self._lead(decode(text), backend, connection)

    @staticmethod
    def _lead(job: Job, backend: DistributedBackend, connection: StageConnection) -> None:
        progress = Progress(job)
        for token in backend.run(progress):
            connection.tell(token=token)
        if progress.scores:
            connection.tell(scores=progress.scores)
        connection.tell(done=True)

    def _kill(self) -> None:
        if self._stages is not None:
            self._stages.kill()
            self._stages = None
