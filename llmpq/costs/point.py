"""Point: what the parts of one pass were measured to take."""

from dataclasses import dataclass, replace

from llmpq.costs.step import Step, step_of


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of repeated passes, and the ends between which eight of ten lay."""

    median_s: float
    low_s: float
    high_s: float

    def scaled(self, factor: float) -> "Timing":
        return Timing(self.median_s * factor, self.low_s * factor, self.high_s * factor)


@dataclass(frozen=True, slots=True)
class Point:
    """One pass of `rows` sequences with `tokens` new tokens each that see `context` positions; one new token: a decode step.

    layers: one layer of each kind, None where the kind cannot have the precision; first: before the layers; last: head and
    sampling; rank: what every stage spends on a step beside, masks, positions and the engine's preparation of a step (None:
    `first` has it).

    Of an engine that batches continuously also: `decoding` sequences that see `decode_context` positions and decode beside the
    prompts; attention: what of each of `layers` is attention; message: what each of several stages spends on what it is told of a
    step and tells; engine: scheduling and outputs, which no stage does.
    """

    precision: str
    rows: int
    tokens: int
    context: int
    layers: tuple[Timing | None, ...]
    first: Timing
    last: Timing
    decoding: int = 0
    decode_context: int = 0
    attention: tuple[Timing | None, ...] = ()
    rank: Timing | None = None
    engine: Timing | None = None
    message: Timing | None = None

    @property
    def key(self) -> tuple[str, int, int, int, int, int]:
        return self.precision, self.rows, self.tokens, self.context, self.decoding, self.decode_context

    @property
    def is_decode(self) -> bool:
        return self.tokens == 1

    @property
    def is_mixed(self) -> bool:
        return self.decoding > 0

    @property
    def step(self) -> Step:
        pure = step_of(self.rows, self.tokens, self.context)
        return replace(pure, sequences=self.decoding, context=self.decode_context) if self.is_mixed else pure

    def scaled(self, factor: float) -> "Point":
        """Every time multiplied by the factor."""

        def each(timings: tuple[Timing | None, ...]) -> tuple[Timing | None, ...]:
            return tuple(None if timing is None else timing.scaled(factor) for timing in timings)

        layers, attention = each(self.layers), each(self.attention)
        rank, engine, message = each((self.rank, self.engine, self.message))
        first, last = self.first.scaled(factor), self.last.scaled(factor)
        whole = replace(self, layers=layers, attention=attention, first=first, last=last)
        return replace(whole, rank=rank, engine=engine, message=message)
