"""Weights of the terms of a covariance: those that leave the least error when every shape is left out in turn."""

import numpy as np
from numpy.typing import NDArray

from llmpq.costs.gaussian_process import FIRST_WEIGHTS, clip, precision_matrix

Array = NDArray[np.float64]

STEPS = 30
_FIRST_STEP, _LEAST_STEP, _LARGEST_STEP = 0.3, 1e-3, 1.0  # of the logarithm of a weight
_LONGER, _SHORTER = 1.3, 0.5
_FARTHEST = 6.0  # e^6 times the first weight, or of it
_TIE = 1e-4  # what a squared logarithm of a weight adds to the mean error, over the terms
_ROUND = 0.01  # errors below that count as squares


def fit_weights(within: Array, residuals: Array, importance: Array) -> Array:
    """Weights [T] for residuals [S, M] of points whose terms [T, S, S] are; importance [S] of their errors.

    The mean absolute error of left-out points, in closed form, goes down by signs of its gradient in the logarithms of the
    weights (Rprop: a step grows while the sign stays). Outliers are clipped once, by the first weights.
    """
    share = importance[:, None] / importance.sum() / max(1, residuals.shape[1])
    clipped = clip(precision_matrix(FIRST_WEIGHTS, within), residuals)
    logs, signs = np.zeros(len(within)), np.zeros(len(within))
    steps = np.full(len(within), _FIRST_STEP)
    best, least = logs, np.inf
    for _ in range(STEPS):
        loss, slope = left_out_error(FIRST_WEIGHTS * np.exp(logs), within, residuals, clipped, share)
        loss += _TIE * float(np.mean(logs**2))
        slope += _TIE * 2 * logs / len(logs)
        best, least = (logs, loss) if loss < least else (best, least)
        agree = np.sign(slope) * signs
        steps = np.clip(np.where(agree > 0, _LONGER, np.where(agree < 0, _SHORTER, 1)) * steps, _LEAST_STEP, _LARGEST_STEP)
        signs = np.where(agree < 0, 0, np.sign(slope))
        logs = np.clip(logs - signs * steps, -_FARTHEST, _FARTHEST)
    return np.asarray(FIRST_WEIGHTS * np.exp(best))


def left_out_error(weights: Array, within: Array, residuals: Array, clipped: Array, share: Array) -> tuple[float, Array]:
    """Mean absolute error of left-out points, and its gradient [T] in the logarithms of the weights.

    With A the inverse, u = A y and d its diagonal the error is e = residual - y + u / d; through dA = -A dK A.
    """
    inverse = precision_matrix(weights, within)
    pulled, diagonal = inverse @ clipped, np.diag(inverse)[:, None]
    errors = residuals - clipped + pulled / diagonal
    size = np.hypot(errors, _ROUND)
    slope = share * errors / size / diagonal
    to_inverse = slope @ clipped.T - np.diag((slope * pulled / diagonal).sum(1))
    to_covariance = -inverse @ to_inverse @ inverse
    gradient = weights * np.einsum("ij,tij->t", to_covariance, within)
    return float((share * size).sum()), np.asarray(gradient)
