"""Worker: one stage at work on one job, step by step."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from llmpq.errors import BackendError
from llmpq.runtime.batching import Step, padded_ids
from llmpq.runtime.job import Job
from llmpq.runtime.progress import Progress
from llmpq.runtime.sampling import sample, token_log_probs
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import End, Message, Room, Transport

OnAction = Callable[[int, Action, float, float], None]  # stage, action, its start and end on the clock


class Worker:
    """Stage `index` of `num_stages`. The first feeds token ids; the last emits tokens, which return to the first.

    planned: positions that the plan has memory for; on_action is called with every action that was computed.
    """

    def __init__(
        self,
        index: int,
        num_stages: int,
        stage: Stage,
        transport: Transport,
        job: Job,
        planned: int,
        on_action: OnAction | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.index, self.is_last = index, index == num_stages - 1
        self.stage, self.transport, self.job, self.planned = stage, transport, job, planned
        self._on_action, self._clock = on_action, clock

    def feed(self, step: Step, progress: Progress) -> None:
        """Begin a step: the prompts, or of each sequence its newest token; the first stage only."""
        if step.action.phase == "P":
            ids = padded_ids([self.job.prompt(sequence) for sequence in step.sequences])
        else:
            ids = torch.tensor([[progress.newest(sequence)] for sequence in step.sequences])
        self.handle(Message(step, ids))

    def follow(self) -> bool:
        """Receive a message and do what it says; False once the job has ended."""
        message = self.transport.receive()
        self.handle(message)
        return not isinstance(message.content, End)

    def handle(self, message: Message) -> None:
        """Compute a step or reserve room, and hand the message on."""
        content = message.content
        if isinstance(content, Room):
            self.stage.reserve(content.slots, content.slot_len, self.planned)
        if not isinstance(content, Step):
            self.transport.send(message)
            return
        if message.payload is None:
            raise BackendError(f"stage {self.index} received {content.action} without its input")
        start = self._clock()
        output = self._compute(content, message.payload)
        if self._on_action:
            self._on_action(self.index, content.action, start, self._clock())
        self.transport.send(Message(content, output))

    def _compute(self, step: Step, x: Tensor) -> Tensor:
        output = self.stage.run(step, x)
        return self._emit(step, output) if self.is_last else output

    @torch.inference_mode()
    def _emit(self, step: Step, logits: Tensor) -> Tensor:
        """What returns to the first stage, float64 on the CPU (exact for token ids); shapes as Progress.take reads them."""
        if self.job.kind == "score":
            ids = padded_ids([self.job.prompt(sequence) for sequence in step.sequences])
            return token_log_probs(logits[:, :-1], ids[:, 1:]).double().cpu()
        logits = logits[:, -1]
        tokens = self._choose(logits, step)
        log_probs = token_log_probs(logits, tokens).cpu() if self.job.wants_log_probs else torch.zeros(len(tokens))
        return torch.stack((tokens.double(), log_probs.double()))

    def _choose(self, logits: Tensor, step: Step) -> Tensor:
        numbers = [row.length - len(self.job.sequences[row.sequence]) for row in step.rows]  # which of its tokens each gets
        if self.job.kind == "force":
            forced = zip(step.sequences, numbers)
            return torch.tensor([(self.job.forced[sequence][number : number + 1] or (0,))[0] for sequence, number in forced])
        return sample(logits, self.job.params, step.sequences, numbers)
