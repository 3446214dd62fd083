"""Scheduler: which tokens of which requests go into the next step, by the policy of vLLM's V1 engine.

First come first served; a step holds at most `token_budget` new tokens; what runs goes before what waits; prompts are cut
into chunks by what is left of the budget; a request whose token is still on its way is not scheduled, so it decodes once per
trip through the pipeline; when no block of the KV cache is free, the request that came last gives its blocks back and starts
over. (Read in vLLM 0.32, v1/core/sched/scheduler.py.) Here a request on its way is never the one that gives way.
"""

from collections import deque
from dataclasses import dataclass, field

from llmpq.errors import InputError
from llmpq.simulation.requests import Request


@dataclass(frozen=True, slots=True)
class Policy:
    """max_num_seqs: requests running at once; token_budget: new tokens per step; kv_blocks: of `block_size` tokens each."""

    max_num_seqs: int
    token_budget: int
    kv_blocks: int
    block_size: int = 16

    def __post_init__(self) -> None:
        if min(self.max_num_seqs, self.token_budget, self.kv_blocks, self.block_size) < 1:
            raise InputError(f"{self}: every figure must be 1 or more")

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step asks of a stage.

    prefill_tokens: tokens of prompts; prefill_pairs: (token, position that it attends to) pairs of theirs;
    decode_sequences: requests that add one token; decode_context: positions that these attend to, summed;
    sampled: requests that get a token out of this step.
    """

    prefill_tokens: int
    prefill_pairs: int
    decode_sequences: int
    decode_context: int
    sampled: int

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decode_sequences


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way: `computed` tokens have, or will have when the running step returns, their place in the cache."""

    request: Request
    number: int
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    in_flight: int = 0

    @property
    def length(self) -> int:
        return self.request.prompt_len + self.generated


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence in one step; `samples`: its last token is among them, so a token comes out."""

    sequence: Sequence
    tokens: int
    context: int
    samples: bool

    @property
    def decodes(self) -> bool:
        return self.tokens == 1 and self.sequence.generated > 0 and self.samples


@dataclass(slots=True)
class Scheduler:
    policy: Policy
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    free_blocks: int = 0
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.free_blocks = self.policy.kv_blocks

    def add(self, sequence: Sequence) -> None:
        """Queue a request; InputError when it can never fit in the cache."""
        request = sequence.request
        longest = request.prompt_len + request.gen_len - 1
        if self.policy.blocks(longest) > self.policy.kv_blocks:
            raise InputError(
                f"a request of {request.prompt_len} + {request.gen_len} tokens needs {self.policy.blocks(longest)} KV blocks; "
                f"the plan has {self.policy.kv_blocks}: give less context or more memory"
            )
        self.waiting.append(sequence)

    def step(self) -> tuple[Chunk, ...]:
        """The chunks of the next step; empty when nothing can run until a step that is on its way returns."""
        chunks: list[Chunk] = []
        before = self.preemptions
        left = self._continue_running(chunks)
        if self.preemptions == before:
            self._admit_waiting(chunks, left)
        return tuple(chunks)

    def finish_step(self, chunks: tuple[Chunk, ...]) -> list[Sequence]:
        """The tokens of a step have returned; the sequences that got one. Those that are complete leave their blocks."""
        got = []
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.in_flight -= 1
            if chunk.samples:
                sequence.generated += 1
                got.append(sequence)
                if sequence.generated == sequence.request.gen_len:
                    self.running.remove(sequence)
                    self._release(sequence)
        return got

    def _continue_running(self, chunks: list[Chunk]) -> int:
        left, index = self.policy.token_budget, 0
        while index < len(self.running) and left:
            sequence = self.running[index]
            index += 1
            new = min(sequence.length - sequence.computed, left)
            if new == 0:  # its token is on the way
                continue
            if not self._reserve(sequence, new, index):
                break
            left -= new
            chunks.append(_take(sequence, new))
        return left

    def _admit_waiting(self, chunks: list[Chunk], left: int) -> None:
        while self.waiting and left and len(self.running) < self.policy.max_num_seqs:
            sequence = self.waiting[0]
            new = min(sequence.length, left)
            if self.policy.blocks(new) > self.free_blocks:
                return
            self.waiting.popleft()
            self.running.append(sequence)
            self._reserve(sequence, new, len(self.running))
            left -= new
            chunks.append(_take(sequence, new))

    def _reserve(self, sequence: Sequence, new: int, scheduled: int) -> bool:
        """Blocks for `new` more tokens; the last sequences behind `scheduled` give way if they must."""
        needed = self.policy.blocks(sequence.computed + new) - sequence.blocks
        while needed > self.free_blocks:
            victim = next((found for found in reversed(self.running[scheduled:]) if not found.in_flight), None)
            if victim is None:
                return False
            self.running.remove(victim)
            self._release(victim)
            victim.computed = 0
            self.waiting.appendleft(victim)
            self.preemptions += 1
        self.free_blocks -= needed
        sequence.blocks += needed
        return True

    def _release(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.blocks
        sequence.blocks = 0


def _take(sequence: Sequence, new: int) -> Chunk:
    sequence.computed += new
    sequence.in_flight += 1
    return Chunk(sequence, new, sequence.computed, sequence.computed == sequence.length)


def shape_of(chunks: tuple[Chunk, ...]) -> StepShape:
    prefill = [chunk for chunk in chunks if not chunk.decodes]
    decode = [chunk for chunk in chunks if chunk.decodes]
    return StepShape(
        prefill_tokens=sum(chunk.tokens for chunk in prefill),
        prefill_pairs=sum(_pairs(chunk) for chunk in prefill),
        decode_sequences=len(decode),
        decode_context=sum(chunk.context for chunk in decode),
        sampled=sum(chunk.samples for chunk in chunks),
    )


def _pairs(chunk: Chunk) -> int:
    """Token i of n new ones, at the end of `context` positions, sees context - n + i of them."""
    return chunk.tokens * (2 * chunk.context - chunk.tokens + 1) // 2
