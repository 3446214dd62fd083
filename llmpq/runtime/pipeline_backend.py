"""PipelineBackend: what the backends of the own runtime share: jobs in, results out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from llmpq.errors import BackendError, PeerError
from llmpq.generation import Generation, OnToken, SamplingParams
from llmpq.graph import LayerGraph
from llmpq.plan import ComputeDtype, Plan
from llmpq.runtime.job import Job, force_job, generate_job, score_job
from llmpq.runtime.progress import NewToken, Progress
from llmpq.runtime.spec import PipelineSpec, pipeline_spec, unsupported, validate
from llmpq.runtime.start_up import StartUp
from llmpq.runtime.token_log import TokenLog, token_log


class PipelineBackend(ABC):
    """Raises BackendError for a plan it does not support, InputError for a sequence that the model or plan cannot take.

    A lost stage is a PeerError that carries what was generated until then.
    """

    name: ClassVar[str]

    def __init__(self, plan: Plan, graph: LayerGraph, compute_dtype: ComputeDtype | None) -> None:
        if reasons := self.unsupported(plan):
            raise BackendError(f"backend {self.name} cannot run this plan", tuple(reasons))
        self._start_up: tuple[StartUp, ...] = ()
        self.spec: PipelineSpec = pipeline_spec(plan, graph, compute_dtype)

    @classmethod
    def unsupported(cls, plan: Plan) -> list[str]:
        """Why this backend cannot run the plan, one sentence each; empty when it can."""
        return unsupported(plan)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        on_token: OnToken | None = None,
        resume: Path | None = None,
    ) -> list[Generation]:
        """Continue every prompt; `on_token(sequence, token)` is called as tokens return to stage 0, per sequence in order.

        resume: a file that keeps the tokens as they come; what it holds of the same prompts is not generated again.
        """
        job = generate_job(prompts, params)
        if resume is None:
            return self._ran(job, on_token).generations()
        with token_log(resume, job) as log:
            return self._ran(job, on_token, log).generations()

    def stream(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Iterator[tuple[int, int]]:
        """(sequence, token) as tokens return to stage 0, per sequence in order; closing the iterator ends the job."""
        progress = self._validated(generate_job(prompts, params))
        return ((sequence, token) for sequence, token, _ in self.run(progress))

    def log_probs(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of the tokens of each continuation, by the prefill and decode path of generation."""
        generations = self._ran(force_job(prompts, continuations)).generations()
        return [generation.log_probs or () for generation in generations]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities (nats) of tokens 1, 2, ... of each sequence given those before them, in one pass without cache."""
        progress = self._ran(score_job(sequences))
        return [progress.scores[index] for index in range(len(sequences))]

    @property
    def start_up(self) -> tuple[StartUp, ...]:
        """What loading took each stage, once they run."""
        return self._start_up

    @abstractmethod
    def run(self, progress: Progress) -> Iterator[NewToken]:
        """Run a valid job to its end; yields tokens as they come."""

    def _validated(self, job: Job, log: TokenLog | None = None) -> Progress:
        validate(job, self.spec)
        return Progress(job) if log is None else Progress.of(job, log.before)

    def _ran(self, job: Job, on_token: OnToken | None = None, log: TokenLog | None = None) -> Progress:
        progress = self._validated(job, log)
        try:
            for token in self.run(progress):
                if log is not None:
                    log.write(token)
                if on_token:
                    on_token(*token[:2])
        except PeerError as error:
            error.generated, error.ended = progress.generated, progress.ended
            raise
        return progress
