"""Hessian: the second moments of a linear's inputs, and the factor by which GPTQ passes errors on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmpq.errors import QuantizationError

DAMPING = 0.01  # of the mean of the diagonal (Frantar et al. 2022)
ATTEMPTS = 4  # each with ten times the damping of the one before


class Hessian:
    """Sum of x x^T over the inputs of a linear; E|W x - W' x|^2 = tr((W - W') H (W - W')^T) with its mean H."""

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.tokens = 0
        self._sum = torch.zeros(in_features, in_features, dtype=torch.float32, device=device)

    def add(self, x: Tensor) -> None:
        """Inputs [..., in_features]."""
        rows = x.detach().to(torch.float32).flatten(0, -2)
        self._sum.addmm_(rows.t(), rows)
        self.tokens += rows.shape[0]

    def mean(self) -> Tensor:
        """[in_features, in_features], E[x x^T]; zeros before the first input."""
        return self._sum / max(1, self.tokens)


@dataclass(frozen=True, slots=True)
class Factor:
    """What GPTQ needs of a Hessian H, the same for every linear that reads the input and for every number of bits.

    matrix: H, [in_features, in_features]. order: columns from the largest to the smallest diagonal entry. inverse: the upper
    triangular U with U^T U = (H + damping)^-1, rows and columns in that order.
    """

    matrix: Tensor
    order: Tensor
    inverse: Tensor
    tokens: int

    @classmethod
    def of(cls, matrix: Tensor, tokens: int, damping: float = DAMPING) -> "Factor":
        """`damping` times the mean of the diagonal is added to it, ten times more where that is not enough.

        Columns that were never anything but zero get a diagonal of that size and so neither pass on errors nor take any.
        Raises QuantizationError for a matrix that is not finite.
        """
        if not bool(torch.isfinite(matrix).all()):
            raise QuantizationError(
                "the calibration text makes inputs that are NaN or infinite; use another text or a wider type"
            )
        diagonal = matrix.diagonal()
        order = diagonal.argsort(descending=True, stable=True)
        mean = float(diagonal.mean()) or 1.0
        for attempt in range(ATTEMPTS):
            damped = matrix[order][:, order]
            damped.diagonal().add_(damping * 10**attempt * mean)
            inverse = _inverse_factor(damped)
            if inverse is not None:
                return cls(matrix, order, inverse, tokens)
        raise QuantizationError(f"the Hessian of {tokens} tokens is not positive definite; use a longer calibration text")

    def loss(self, error: Tensor) -> Tensor:
        """[rows] of error [rows, in_features]: E|error x|^2, row by row."""
        return ((error @ self.matrix) * error).sum(-1)


def _inverse_factor(matrix: Tensor) -> Tensor | None:
    """U, upper triangular, with U^T U = matrix^-1; None when `matrix` is not positive definite.

    matrix = R R^T with R upper triangular (a Cholesky factor from the last row up), so U = R^-1: one factorization and one
    triangular inverse instead of an inverse and two factorizations.
    """
    lower, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(info):
        return None
    upper = lower.flip(0, 1).contiguous()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverse
