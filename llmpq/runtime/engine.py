"""Engine: runs a job, batch by batch, on the stages of a pipeline that live in this process."""

from collections.abc import Mapping, Sequence

from llmpq.generation import OnToken
from llmpq.runtime.batching import Batch
from llmpq.runtime.job import Job
from llmpq.runtime.progress import Progress
from llmpq.runtime.schedule import Schedule, schedule
from llmpq.runtime.spec import PipelineSpec, cut
from llmpq.runtime.stage import Stage
from llmpq.runtime.transport import Transport
from llmpq.runtime.worker import Worker


class Engine:
    """`stages`: those of this process by index: all of them, or one beside other processes that run the same jobs."""

    def __init__(self, spec: PipelineSpec, stages: Mapping[int, Stage], transports: Sequence[Transport]) -> None:
        """`transports`: the place of each stage in `stages`, in the same order."""
        self.spec = spec
        self.stages = stages
        self.transports = transports

    def run(self, job: Job, on_token: OnToken | None = None) -> Progress:
        """Run the job to its end. What returned is whole where stage 0 lives; elsewhere it stays empty."""
        progress = Progress(job, on_token)
        for batch in cut(job, self.spec):
            workers = {
                index: Worker(stage, transport, job, batch, None if index else progress, index == self.spec.num_stages - 1)
                for (index, stage), transport in zip(self.stages.items(), self.transports)
            }
            interpret(batch_schedule(batch, self.spec.num_stages), workers)
        return progress


def batch_schedule(batch: Batch, num_stages: int) -> Schedule:
    """The schedule that the engine interprets for a batch."""
    return schedule(num_stages, len(batch.prefill), len(batch.decode), batch.new_tokens, batch.prefill_per_decode)


def interpret(schedule: Schedule, workers: Mapping[int, Worker]) -> None:
    """Walk the slots; in each, every worker does its stage's action. Within one process that order alone meets all needs."""
    for slot in zip(*(schedule.rows[index] for index in workers)):
        for worker, action in zip(workers.values(), slot):
            if action is not None:
                worker.run(action)
    for worker in reversed(list(workers.values())):
        worker.finish()
