"""LocalBackend: all stages of a plan in this process."""

from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import nn

from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.runtime.engine import Engine
from llmpq.runtime.pipeline_backend import PipelineBackend
from llmpq.runtime.progress import NewToken, Progress
from llmpq.runtime.stage import Stage
from llmpq.runtime.start_up import started
from llmpq.runtime.torch_devices import torch_devices
from llmpq.runtime.transport import in_process_ring


class LocalBackend(PipelineBackend):
    """`load_stage(j)` gives the module of stage j; `compute_dtype` "float32" is reference mode, None the plan's own."""

    name: ClassVar[str] = "local"

    def __init__(
        self,
        plan: Plan,
        graph: LayerGraph,
        load_stage: Callable[[int], nn.Module],
        compute_dtype: ComputeDtype | None = None,
    ) -> None:
        super().__init__(plan, graph, compute_dtype)
        devices, spec = torch_devices(plan), self.spec
        made = [
            started(lambda j=j: Stage(load_stage(j), spec.layers[j], spec.torch_dtype, devices[j]))  # type: ignore[misc]
            for j in range(spec.num_stages)
        ]
        self._start_up = tuple(took for _, took in made)
        self._engine = Engine(spec, {j: stage for j, (stage, _) in enumerate(made)}, in_process_ring(spec.num_stages))

    def run(self, progress: Progress) -> Iterator[NewToken]:
        return self._engine.run(progress)
