"""Gaussian process over GEMM shapes: terms of the covariance, conditioning, left-out predictions in closed form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NOISE = 0.1  # variance of a measurement; weights of terms are relative to it
_CONSTANT = 10.0  # variance of the unknown mean
_SAME = 1e-6  # two logarithms closer than this belong to the same dimension
_CENTRE = 11.0  # log2 of a dimension of 2048
_CLIP = 4.2  # residuals beyond that many robust deviations are outliers
_CLIP_ROUNDS = 2
_SMALLEST_CLIP = 0.02


@dataclass(frozen=True, slots=True)
class Apart:
    """How far shapes [L] and [R] lie apart, [L, R] each: in octaves of n, k and n*k, and in the share out of the cache.

    slopes: products of their distances from the centre, summed over n and k.
    """

    n: Array
    k: Array
    product: Array
    regime: Array
    slopes: Array

    def short(self, n: float, k: float, regime: float) -> Array:
        """Exponential in the distance, by lengths."""
        return np.asarray(np.exp(-np.sqrt((self.n / n) ** 2 + (self.k / k) ** 2 + (self.regime / regime) ** 2)))

    def smooth(self, n: float, k: float) -> Array:
        """Matern 5/2."""
        far = np.sqrt(5) * np.hypot(self.n / n, self.k / k)
        return np.asarray((1 + far + far**2 / 3) * np.exp(-far))


# (weight that fits begin with, term). Equal n has the same tiles and waves, everywhere or while k is near.
TERMS: tuple[tuple[float, Callable[[Apart], NDArray[Any]]], ...] = (
    (60, lambda apart: apart.smooth(4.5, 6)),
    (0.8, lambda apart: apart.short(0.9, 4, 0.4)),
    (0.5, lambda apart: apart.short(0.3, 3, 1)),
    (0.1, lambda apart: apart.short(0.5, 0.5, 1)),
    (0.2, lambda apart: 1.0 * (apart.n < _SAME)),
    (0.1, lambda apart: (apart.n < _SAME) * np.exp(-apart.k)),
    (0.1, lambda apart: (apart.n < _SAME) * np.exp(-apart.k / 3)),
    (0.02, lambda apart: (apart.k < _SAME) * np.exp(-apart.n)),
    (0.1, lambda apart: np.exp(-apart.k / 3)),
    (0.03, lambda apart: np.exp(-apart.n)),
    (0.03, lambda apart: np.exp(-apart.product)),
    (0.1, lambda apart: np.exp(-apart.product / 4)),
    (0.02, lambda apart: apart.slopes),
)
FIRST_WEIGHTS: Array = np.array([weight for weight, _ in TERMS])


def terms(left: Array, right: Array) -> Array:
    """TERMS [T, L, R] between features [L, 3] and [R, 3]: log2 n, log2 k, share out of the cache."""
    n, k, regime = (np.abs(left[:, None, axis] - right[None, :, axis]) for axis in range(3))
    product = np.abs(left[:, None, :2].sum(-1) - right[None, :, :2].sum(-1))
    apart = Apart(n, k, product, regime, (left[:, :2] - _CENTRE) @ (right[:, :2] - _CENTRE).T)
    return np.stack([term(apart) for _, term in TERMS])


def covariance(weights: Array, between: Array) -> Array:
    """[L, R] of terms [T, L, R]."""
    return np.asarray(np.tensordot(weights, between, 1) + _CONSTANT)


def precision_matrix(weights: Array, within: Array) -> Array:
    """Inverse [S, S] of the noisy covariance of points whose terms [T, S, S] are."""
    return np.asarray(np.linalg.inv(covariance(weights, within) + NOISE * np.eye(within.shape[-1])), np.float64)


@dataclass(frozen=True, slots=True)
class Posterior:
    """A process conditioned on residuals [S, M], outliers clipped; `inverse` is that of the noisy covariance."""

    weights: Array
    clipped: Array
    inverse: Array

    def predict(self, between: Array) -> Array:
        """Expected residuals [P, M] from terms [T, P, S]."""
        return np.asarray(covariance(self.weights, between) @ (self.inverse @ self.clipped))

    def leave_out(self, groups: NDArray[Any]) -> Array:
        """Residuals [S, M] that each point would get from the points of all other groups."""
        weighted = self.inverse @ self.clipped
        expected = self.clipped - weighted / np.diag(self.inverse)[:, None]
        alone, counts = np.unique(groups, return_counts=True)
        for group in alone[counts > 1]:
            rows = np.flatnonzero(groups == group)
            expected[rows] = self.clipped[rows] - np.linalg.solve(self.inverse[np.ix_(rows, rows)], weighted[rows])
        return expected


def condition(weights: Array, within: Array, residuals: Array) -> Posterior:
    """On residuals [S, M] of points whose terms [T, S, S] are."""
    inverse = precision_matrix(weights, within)
    return Posterior(weights, clip(inverse, residuals), inverse)


def clip(inverse: Array, residuals: Array) -> Array:
    """Outliers are replaced by what the other points predict there, column by column."""
    clipped = residuals
    for _ in range(_CLIP_ROUNDS):
        expected = clipped - (inverse @ clipped) / np.diag(inverse)[:, None]
        error = np.abs(residuals - expected)
        limit = np.maximum(_CLIP * 1.4826 * np.median(error, axis=0), _SMALLEST_CLIP)
        clipped = np.where(error > limit, expected, residuals)
    return clipped
