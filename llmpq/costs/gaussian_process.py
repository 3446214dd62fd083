"""Gaussian process over GEMM shapes: kernels chosen by cross-validation, conditioning, left-out predictions in closed form."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SAME = 1e-6  # two logarithms closer than this belong to the same dimension
_CONSTANT = 10.0  # variance of the unknown mean
_CENTRE = 11.0  # log2 of a dimension of 2048
_CLIP_ROUNDS = 2
_SMALLEST_CLIP = 0.02


@dataclass(frozen=True, slots=True)
class Kernel:
    """Variances and length scales (octaves) of one range of token counts; only ratios of variances matter.

    smooth: Matern 5/2 in (log n, log k), lengths smooth_n, smooth_k;
    short: exponential, lengths short_n, short_k, and short_regime in the share out of the cache;
    same_n: equal n, hence the same tiles and waves; along_k, along_product: exponentials in log k and in log n*k;
    linear: slopes; noise: variance of a measurement; clip: residuals beyond that many robust deviations are outliers.
    """

    smooth: float
    smooth_n: float
    smooth_k: float
    short: float
    short_n: float
    short_k: float
    short_regime: float
    same_n: float
    along_k: float
    along_k_length: float
    along_product: float
    along_product_length: float
    linear: float
    noise: float
    clip: float

    def covariance(self, left: Array, right: Array) -> Array:
        """[L, R] from features [L, 3] and [R, 3]: log2 n, log2 k, share out of the cache."""
        n, k, regime = (np.abs(left[:, None, axis] - right[None, :, axis]) for axis in range(3))
        product = np.abs(left[:, None, :2].sum(-1) - right[None, :, :2].sum(-1))
        smooth = np.sqrt(5) * np.hypot(n / self.smooth_n, k / self.smooth_k)
        short = np.sqrt((n / self.short_n) ** 2 + (k / self.short_k) ** 2 + (regime / self.short_regime) ** 2)
        slopes = (left[:, :2] - _CENTRE) @ (right[:, :2] - _CENTRE).T
        return np.asarray(
            self.smooth * (1 + smooth + smooth**2 / 3) * np.exp(-smooth)
            + self.short * np.exp(-short)
            + self.same_n * (n < _SAME)
            + self.along_k * np.exp(-k / self.along_k_length)
            + self.along_product * np.exp(-product / self.along_product_length)
            + self.linear * slopes
            + _CONSTANT
        )


@dataclass(frozen=True, slots=True)
class Posterior:
    """A process conditioned on residuals [S, M] at features [S, 3]; `inverse` is that of the noisy covariance."""

    kernel: Kernel
    features: Array
    clipped: Array
    inverse: Array

    def predict(self, features: Array) -> Array:
        """Expected residuals [P, M]."""
        return np.asarray(self.kernel.covariance(features, self.features) @ (self.inverse @ self.clipped))

    def leave_out(self, groups: NDArray[Any]) -> Array:
        """Residuals [S, M] that each point would get from the points of all other groups."""
        weighted = self.inverse @ self.clipped
        expected = self.clipped - weighted / np.diag(self.inverse)[:, None]
        alone, counts = np.unique(groups, return_counts=True)
        for group in alone[counts > 1]:
            rows = np.flatnonzero(groups == group)
            expected[rows] = self.clipped[rows] - np.linalg.solve(self.inverse[np.ix_(rows, rows)], weighted[rows])
        return expected


def condition(kernel: Kernel, features: Array, residuals: Array) -> Posterior:
    """Outliers are replaced by what the other points predict there, column by column."""
    noisy = kernel.covariance(features, features) + kernel.noise * np.eye(len(features))
    inverse = np.asarray(np.linalg.inv(noisy), np.float64)
    clipped = residuals
    for _ in range(_CLIP_ROUNDS):
        expected = clipped - (inverse @ clipped) / np.diag(inverse)[:, None]
        error = np.abs(residuals - expected)
        limit = np.maximum(kernel.clip * 1.4826 * np.median(error, axis=0), _SMALLEST_CLIP)
        clipped = np.where(error > limit, expected, residuals)
    return Posterior(kernel, features, clipped, inverse)
