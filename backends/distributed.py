"""DistributedBackend: one stage of a plan in this process, the others in theirs, over torch.distributed."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import ClassVar, Self

from torch import nn

from llmpq.errors import BackendError, PeerError
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.runtime.engine import Engine
from llmpq.runtime.heartbeat import PATIENCE, Patience
from llmpq.runtime.job import decode, encode
from llmpq.runtime.launcher import end_with_launcher
from llmpq.runtime.pipeline_backend import PipelineBackend
from llmpq.runtime.process_group import Place, ProcessGroup
from llmpq.runtime.progress import NewToken, Progress
from llmpq.runtime.stage import Stage
from llmpq.runtime.start_up import StartUp, started
from llmpq.runtime.torch_devices import torch_devices
from llmpq.runtime.worker import OnAction
from llmpq.serialize import dumps, loads

_START_UP = "start-up"  # under which every stage shares what its loading took
_NO_MORE = ""  # published instead of a job: the other ranks may leave


class DistributedBackend(PipelineBackend):
    """Started once per stage by torchrun or `launch`; only the own stage is loaded.

    Rank 0 generates and scores, the other ranks `follow()` until it leaves:

        with DistributedBackend(plan, graph, load_stage) as backend:
            backend.follow() if backend.rank else show(backend.generate(prompts, params))

    `place`: by default from the environment. `via_host`: see ProcessGroup; so it is anyway where stages share a card or one of
    them is on the CPU. `on_action`: see Engine; called in the process of each stage, with times on its monotonic clock.
    """

    name: ClassVar[str] = "distributed"

    def __init__(
        self,
        plan: Plan,
        graph: LayerGraph,
        load_stage: Callable[[int], nn.Module],
        compute_dtype: ComputeDtype | None = None,
        patience: Patience = PATIENCE,
        via_host: bool = False,
        place: Place | None = None,
        on_action: OnAction | None = None,
    ) -> None:
        super().__init__(plan, graph, compute_dtype)
        end_with_launcher()
        place, spec = place or Place.from_environment(), self.spec
        if place.world_size != spec.num_stages:
            raise BackendError(
                f"{place.world_size} processes were started for a plan of {spec.num_stages} stages; start one for each"
            )
        self.rank = place.rank
        devices = torch_devices(plan)
        apart = len(set(devices)) == len(devices) and all(device.type == "cuda" for device in devices)
        where = (devices[place.rank], patience, via_host or not apart)
        self._group = ProcessGroup(place, spec.stage_name, spec.most_rows, *where, row_bytes=spec.row_bytes)
        try:
            stage, start_up = started(
                lambda: Stage(load_stage(place.rank), spec.layers[place.rank], spec.torch_dtype, devices[place.rank])
            )
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        self._group.share(_START_UP, dumps(start_up))
        self._engine = Engine(spec, {place.rank: stage}, (self._group.ring(),), on_action=on_action)

    def follow(self) -> None:
        """Run this stage's part of every job that rank 0 publishes, until rank 0 leaves."""
        while (text := self._group.next_job()) != _NO_MORE:
            self._engine.follow(decode(text))

    @property
    def start_up(self) -> tuple[StartUp, ...]:
        """What loading took each stage; waits for those that still load."""
        return tuple(loads(StartUp, text, _START_UP) for text in self._group.shared(_START_UP))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the group; after an error the other stages are told who is to blame."""
        if kind is None:
            if self.rank == 0:
                self._group.publish(_NO_MORE)
            self._group.part()
        elif not isinstance(error, PeerError):
            self._group.give_up(f"{kind.__name__}: {error}".splitlines()[0])
        self._group.close(failed=kind is not None)

    def run(self, progress: Progress) -> Iterator[NewToken]:
        if self.rank:
            raise BackendError(f"rank {self.rank} was asked to generate; only rank 0 does, the others follow()")
        self._group.shared(_START_UP)  # what a stage takes to load is not what a step takes
        self._group.publish(encode(progress.job))
        return self._engine.run(progress)
