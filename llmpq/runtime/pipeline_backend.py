"""PipelineBackend: what the local and the distributed backend share: jobs in, results out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from llmpq.errors import BackendError
from llmpq.generation import Generation, OnToken, SamplingParams
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.runtime.job import Job, force_job, generate_job, score_job
from llmpq.runtime.progress import Progress
from llmpq.runtime.spec import PipelineSpec, pipeline_spec, unsupported, validate


class PipelineBackend(ABC):
    """Raises BackendError for a plan it does not support, InputError for a sequence that the model or plan cannot take."""

    name: ClassVar[str]

    def __init__(self, plan: Plan, graph: LayerGraph, compute_dtype: ComputeDtype | None) -> None:
        if reasons := self.unsupported(plan):
            raise BackendError(f"backend {self.name} cannot run this plan", tuple(reasons))
        self.spec: PipelineSpec = pipeline_spec(plan, graph, compute_dtype)

    @classmethod
    def unsupported(cls, plan: Plan) -> list[str]:
        """Why this backend cannot run the plan, one sentence each; empty when it can."""
        return unsupported(plan)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, on_token: OnToken | None = None
    ) -> list[Generation]:
        """Continue every prompt; `on_token(sequence, token)` is called as tokens return to stage 0, per sequence in order."""
        return self._validated_run(generate_job(prompts, params), on_token).generations()

    def log_probs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of the tokens of each continuation, by the prefill and decode path of generation."""
        generations = self._validated_run(force_job(prompts, continuations)).generations()
        return [generation.log_probs or () for generation in generations]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of tokens 1, 2, ... of each sequence given those before them, in one pass without cache."""
        progress = self._validated_run(score_job(sequences))
        return [progress.scores[index] for index in range(len(sequences))]

    @abstractmethod
    def _run(self, job: Job, on_token: OnToken | None) -> Progress:
        """Run a valid job to its end."""

    def _validated_run(self, job: Job, on_token: OnToken | None = None) -> Progress:
        validate(job, self.spec)
        return self._run(job, on_token)
