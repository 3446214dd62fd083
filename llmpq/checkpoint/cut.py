"""Cut: the share of a tensor of the source that is stored as a tensor of its own: a Conv1D upright, an expert's gate or up."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from llmpq.graph import Linear


@dataclass(frozen=True, slots=True)
class Cut:
    """Of [experts, ...] the one of number `expert`, None where the source is one matrix or vector already; of that, upright where
    it is `transposed`, share number `piece` of `pieces` of its rows: neighbours, or every so many-th where `interleaved`."""

    expert: int | None = None
    transposed: bool = False
    piece: int = 0
    pieces: int = 1
    interleaved: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """A view of `tensor`."""
        own = tensor if self.expert is None else tensor[self.expert]
        upright = own.t() if self.transposed and own.dim() == 2 else own
        rows = upright.shape[0] // self.pieces
        return upright[self.piece :: self.pieces] if self.interleaved else upright[self.piece * rows : (self.piece + 1) * rows]

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of that view."""
        own = whole if self.expert is None else whole[1:]
        upright = own[::-1] if self.transposed else own
        return upright[0] // self.pieces, *upright[1:]


def cuts_of(linear: Linear, sources: int, is_bias: bool = False) -> Iterator[tuple[int, Cut | None]]:
    """For each of the linears as which `linear` is stored: which of its sources, and what of it; None: all.

    sources: one parameter for all experts, a matrix for each, or one for each of their pieces, expert by expert.
    """
    count = len(linear.pieces) or 1
    if linear.experts == 1:
        yield 0, Cut(transposed=True) if linear.transposed and not is_bias else None
        return
    for number in range(linear.experts * count):
        expert, piece = divmod(number, count)
        if sources == linear.experts * count:
            yield number, None
        elif sources == linear.experts:
            yield expert, Cut(None, False, piece, count, linear.interleaved)
        else:
            yield 0, Cut(expert, linear.transposed, piece, count, linear.interleaved)
