"""SoftRoofline: launch, memory and arithmetic time blended by a smooth maximum, fitted to measured latencies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# (first guess, lowest, highest) of each parameter, in the order of the fields of SoftRoofline
_RANGES = (
    (3e-6, 0.1e-6, 100e-6),
    (1.3, 0.3, 20),
    (1.4, 0.3, 60),
    (3, 0.6, 12),
    (40e6, 8e6, 150e6),
    (1.5, 1.0001, 6),
    (0.15, 0.05, 1),
)
_CACHE_STARTS = (20e6, 40e6, 80e6)
_STEPS = 40
_ROBUST = 0.1  # residuals beyond 10 % count linearly


@dataclass(frozen=True, slots=True)
class Work:
    """What an operation must do: seconds at the peaks of the hardware; `kept_bytes`: the operand that a cache may hold."""

    kept_s: Array
    streamed_s: Array
    compute_s: Array
    kept_bytes: Array


@dataclass(frozen=True, slots=True)
class SoftRoofline:
    """overhead_s + ((memory * traffic)^sharpness + (compute * arithmetic)^sharpness)^(1 / sharpness).

    Traffic is `cache_speedup` times faster while the kept operand is smaller than `cache_bytes` (a benchmark that repeats
    one operation finds it in the cache); the change is a logistic of width `cache_width` in the logarithm of the bytes.
    """

    overhead_s: float
    memory: float
    compute: float
    sharpness: float
    cache_bytes: float
    cache_speedup: float
    cache_width: float

    def uncached(self, work: Work) -> Array:
        """How far the kept operand is out of the cache, from 0 to 1."""
        distance = np.log(work.kept_bytes / self.cache_bytes) / self.cache_width
        return np.asarray(1 / (1 + np.exp(-np.clip(distance, -50, 50))))

    def latency_s(self, work: Work) -> Array:
        speedup = self.cache_speedup ** (self.uncached(work) - 1)
        traffic = self.memory * speedup * (work.kept_s + work.streamed_s)
        arithmetic = self.compute * work.compute_s
        blend = (traffic**self.sharpness + arithmetic**self.sharpness) ** (1 / self.sharpness)
        return np.asarray(self.overhead_s + blend)


def fit_soft_roofline(work: Work, latency_s: Array, weight: Array) -> SoftRoofline:
    """Least squares of the logarithms, robust to outliers, by Levenberg's damping from several sizes of the cache."""
    starts = [np.log([cache if index == 4 else first for index, (first, _, _) in enumerate(_RANGES)]) for cache in _CACHE_STARTS]
    fits = [_descend(start, work, np.log(latency_s), weight) for start in starts]
    return _model(min(fits, key=lambda fit: fit[0])[1])


def _model(logs: Array) -> SoftRoofline:
    return SoftRoofline(*(float(value) for value in np.exp(logs)))


def _descend(start: Array, work: Work, target: Array, weight: Array) -> tuple[float, Array]:
    lowest, highest = np.log([low for _, low, _ in _RANGES]), np.log([high for _, _, high in _RANGES])

    def residuals(logs: Array) -> Array:
        return np.asarray(np.log(_model(logs).latency_s(work)) - target).ravel()

    def loss(residual: Array) -> float:
        return float(np.sum(weight.ravel() * (np.sqrt(1 + (residual / _ROBUST) ** 2) - 1)))

    logs, damping = start, 1e-2
    residual = residuals(logs)
    for _ in range(_STEPS):
        jacobian = np.stack([(residuals(logs + 1e-4 * unit) - residual) / 1e-4 for unit in np.eye(len(logs))], -1)
        weighted = jacobian * (weight.ravel() / np.sqrt(1 + (residual / _ROBUST) ** 2))[:, None]
        normal = weighted.T @ jacobian + 1e-3 * np.eye(len(logs))
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -weighted.T @ residual)
        candidate = np.clip(logs + np.clip(step, -0.5, 0.5), lowest, highest)
        moved = residuals(candidate)
        if loss(moved) < loss(residual):
            logs, residual, damping = candidate, moved, damping / 3
        else:
            damping *= 4
    return loss(residual), logs
