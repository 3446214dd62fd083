"""LocalBackend: all stages of a plan in this process."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from llmpq.generation import OnToken
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.runtime.engine import Engine
from llmpq.runtime.job import Job
from llmpq.runtime.pipeline_backend import PipelineBackend
from llmpq.runtime.progress import Progress
from llmpq.runtime.stage import Stage
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
        torch_device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(plan, graph, compute_dtype)
        dtype = self.spec.torch_dtype
        stages = {j: Stage(load_stage(j), layers, dtype, torch_device) for j, layers in enumerate(self.spec.layers)}
        self._engine = Engine(self.spec, stages, in_process_ring(len(stages)))

    def _run(self, job: Job, on_token: OnToken | None) -> Progress:
        return self._engine.run(job, on_token)
