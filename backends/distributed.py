"""DistributedBackend: one stage of a plan in this process, the others in theirs, over torch.distributed."""

from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, Self

from torch import nn

from llmpq.errors import BackendError
from llmpq.generation import OnToken
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.runtime.engine import Engine
from llmpq.runtime.job import Job, decode, encode
from llmpq.runtime.launcher import end_with_launcher
from llmpq.runtime.pipeline_backend import PipelineBackend
from llmpq.runtime.process_group import Place, ProcessGroup
from llmpq.runtime.progress import Progress
from llmpq.runtime.stage import Stage
from llmpq.runtime.torch_devices import torch_devices

_NO_MORE = ""  # published instead of a job: the other ranks may leave


class DistributedBackend(PipelineBackend):
    """Started once per stage by torchrun or `launch`; only the own stage is loaded.

    Rank 0 generates and scores, the other ranks `follow()` until it leaves:

        with DistributedBackend(plan, graph, load_stage) as backend:
            backend.follow() if backend.rank else show(backend.generate(prompts, params))

    `timeout_s`: how long a stage waits for a message before it gives the others up. `via_host`: see ProcessGroup.
    """

    name: ClassVar[str] = "distributed"

    def __init__(
        self,
        plan: Plan,
        graph: LayerGraph,
        load_stage: Callable[[int], nn.Module],
        compute_dtype: ComputeDtype | None = None,
        timeout_s: float = 300.0,
        via_host: bool = False,
    ) -> None:
        super().__init__(plan, graph, compute_dtype)
        end_with_launcher()
        place, spec = Place.from_environment(), self.spec
        if place.world_size != spec.num_stages:
            raise BackendError(
                f"{place.world_size} processes were started for a plan of {spec.num_stages} stages; start one for each"
            )
        self.rank = place.rank
        torch_device = torch_devices(plan)[place.rank]
        stage = Stage(load_stage(place.rank), spec.layers[place.rank], spec.torch_dtype, torch_device)
        self._group = ProcessGroup(place, spec.stage_name, torch_device, timeout_s, via_host)
        self._engine = Engine(spec, {place.rank: stage}, (self._group.ring(),))

    def follow(self) -> None:
        """Run this stage's part of every job that rank 0 publishes, until rank 0 leaves."""
        while (text := self._group.next_job()) != _NO_MORE:
            self._engine.run(decode(text))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the group; after an error without a word, so that the other stages notice."""
        if kind is None:
            if self.rank == 0:
                self._group.publish(_NO_MORE)
            self._group.part()
        self._group.close()

    def _run(self, job: Job, on_token: OnToken | None) -> Progress:
        if self.rank:
            raise BackendError(f"rank {self.rank} was asked to generate; only rank 0 does, the others follow()")
        self._group.publish(encode(job))
        return self._engine.run(job, on_token)
