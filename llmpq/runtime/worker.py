"""Worker: interprets one stage's row of a schedule, action by action."""

from collections import Counter

import torch
from torch import Tensor

from llmpq.errors import BackendError
from llmpq.runtime.batching import Batch, Rows
from llmpq.runtime.job import Job
from llmpq.runtime.progress import Progress
from llmpq.runtime.sampling import sample, token_log_probs
from llmpq.runtime.stage import Stage
from llmpq.runtime.timeline import Action
from llmpq.runtime.transport import Message, Transport


class Worker:
    """One stage at work on one batch. The first (with `progress`) feeds ids; the last emits tokens, which return to it."""

    def __init__(
        self, stage: Stage, transport: Transport, job: Job, batch: Batch, progress: Progress | None, is_last: bool
    ) -> None:
        self.stage, self.transport, self.job, self.batch = stage, transport, job, batch
        self.progress, self.is_last = progress, is_last
        self._steps: Counter[int] = Counter()  # decode micro-batch -> tokens asked for after the first
        self._in_flight: Counter[int] = Counter()  # decode micro-batch -> messages on the way, known to the first stage
        self._ended: set[int] = set()
        stage.begin(batch, keeps_cache=job.kind != "score")

    def run(self, action: Action) -> None:
        """Receive the input, compute, send the output on; nothing for a decode micro-batch that has ended."""
        if action.phase == "D" and action.micro_batch in self._ended:
            return
        message = self._feed(action, self.progress) if self.progress else self._receive(action)
        if message.payload is not None:
            self.transport.send(Message(action, self._compute(action, message.payload)))
        else:
            self._ended.add(action.micro_batch)
            if not self.is_last:
                self.transport.send(message)

    def finish(self) -> None:
        """Collect what is still on its way to the first stage; return when all that was sent has left."""
        while self.progress and self._in_flight.total():
            self._collect(self.progress)
        self.transport.flush()

    def _feed(self, action: Action, progress: Progress) -> Message:
        owner = self._owner(action)
        if action.phase == "P":
            self._in_flight[owner] += 1
            return Message(action, self.batch.prefill_rows(action.micro_batch).input_ids(self.job.sequences))
        while self._in_flight[owner]:
            self._collect(progress)
        rows = self.batch.decode[owner]
        if progress.ended(rows):
            return Message(action, None)
        self._in_flight[owner] += 1
        return Message(action, progress.next_ids(rows))

    def _collect(self, progress: Progress) -> None:
        message = self.transport.receive()
        if message.payload is None:
            raise BackendError(f"the last stage returned {message.action} without tokens")
        self._in_flight[self._owner(message.action)] -= 1
        progress.take(self._rows(message.action), message.payload)

    def _receive(self, action: Action) -> Message:
        message = self.transport.receive()
        if message.action != action:
            raise BackendError(f"schedule: a stage received {message.action} where its schedule has {action}")
        return message

    def _compute(self, action: Action, x: Tensor) -> Tensor:
        run = self.stage.prefill if action.phase == "P" else self.stage.decode
        self._steps[action.micro_batch] += action.phase == "D"
        output = run(self.batch, action.micro_batch, x)
        return self._emit(action, output) if self.is_last else output

    @torch.inference_mode()
    def _emit(self, action: Action, logits: Tensor) -> Tensor:
        """What returns to the first stage, float64 on the CPU (exact for token ids); shapes as Progress.take reads them."""
        rows = self._rows(action)
        if self.job.kind == "score":
            ids = rows.input_ids(self.job.sequences)
            return token_log_probs(logits[:, :-1], ids[:, 1:]).double().cpu()
        logits = logits[:, -1]
        tokens = self._choose(logits, rows, self._steps[action.micro_batch] if action.phase == "D" else 0)
        log_probs = token_log_probs(logits, tokens).cpu() if self.job.wants_log_probs else torch.zeros(len(rows))
        return torch.stack((tokens.double(), log_probs.double()))

    def _choose(self, logits: Tensor, rows: Rows, step: int) -> Tensor:
        if self.job.kind == "force":
            return torch.tensor([(self.job.forced[s][step : step + 1] or (0,))[0] for s in rows.sequences])
        return sample(logits, self.job.params, rows.sequences, step)

    def _owner(self, action: Action) -> int:
        return self.batch.prefill[action.micro_batch].owner if action.phase == "P" else action.micro_batch

    def _rows(self, action: Action) -> Rows:
        return self.batch.prefill_rows(action.micro_batch) if action.phase == "P" else self.batch.decode[action.micro_batch]
