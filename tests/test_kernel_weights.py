"""Weights of kernel terms: the gradient against finite differences, and what fitting them is worth on shapes left out."""

import numpy as np
import pytest

from llmpq.costs.gaussian_process import FIRST_WEIGHTS, TERMS, Posterior, clip, condition, precision_matrix, terms
from llmpq.costs.kernel_weights import fit_weights, left_out_error

SIZES = np.log2([64, 512, 1024, 1536, 2048, 4096, 5120, 8192])
FEATURES = np.array([(n, k, float(n + k > 22)) for n in SIZES for k in SIZES])
WITHIN = terms(FEATURES, FEATURES)


def staircase() -> np.ndarray:
    """Residuals [64, 2] that depend on n alone, by leaps, and a little noise."""
    random = np.random.default_rng(0)
    leaps = dict(zip(SIZES, random.normal(0, 0.2, len(SIZES))))
    return np.array([[leaps[n]] * 2 for n, _, _ in FEATURES]) + random.normal(0, 0.005, (len(FEATURES), 2))


def test_terms_are_covariances() -> None:
    assert WITHIN.shape == (len(TERMS), 64, 64)
    for term in WITHIN:
        assert np.allclose(term, term.T)
        assert np.linalg.eigvalsh(term).min() > -1e-8 * np.abs(term).max()


def test_the_gradient_is_that_of_theleft_out_error() -> None:
    residuals = staircase()
    clipped = clip(precision_matrix(FIRST_WEIGHTS, WITHIN), residuals)
    share = np.full((64, 1), 1 / residuals.size)
    weights = FIRST_WEIGHTS * np.exp(np.random.default_rng(1).normal(0, 0.5, len(TERMS)))
    _, gradient = left_out_error(weights, WITHIN, residuals, clipped, share)
    for term in range(len(TERMS)):
        up, down = (weights * np.where(np.arange(len(TERMS)) == term, np.exp(step), 1) for step in (1e-4, -1e-4))
        losses = [left_out_error(changed, WITHIN, residuals, clipped, share)[0] for changed in (up, down)]
        assert gradient[term] == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-3, abs=1e-9)


def test_fitted_weights_find_that_only_n_matters_and_predict_what_was_left_out_better() -> None:
    residuals = staircase()
    kept = np.random.default_rng(2).random(64) < 0.6
    within, between = WITHIN[:, kept][:, :, kept], WITHIN[:, ~kept][:, :, kept]
    weights = fit_weights(within, residuals[kept], np.ones(kept.sum()))
    first, fitted = (
        np.abs(condition(chosen, within, residuals[kept]).predict(between) - residuals[~kept]).mean()
        for chosen in (FIRST_WEIGHTS, weights)
    )
    assert fitted < 0.7 * first
    same_n = next(
        index for index, (_, term) in enumerate(TERMS) if np.array_equal(WITHIN[index], FEATURES[:, :1] == FEATURES[:, 0])
    )
    assert weights[same_n] > FIRST_WEIGHTS[same_n]


def test_leaving_out_in_closed_form_equals_conditioning_on_the_rest() -> None:
    residuals = staircase()
    posterior = condition(FIRST_WEIGHTS, WITHIN, residuals)
    out = FEATURES[:, 0] == SIZES[3]
    rest = WITHIN[:, ~out][:, :, ~out]
    without = Posterior(FIRST_WEIGHTS, posterior.clipped[~out], precision_matrix(FIRST_WEIGHTS, rest))
    assert np.allclose(posterior.leave_out(FEATURES[:, 0])[out], without.predict(WITHIN[:, out][:, :, ~out]))


def test_an_outlier_is_replaced_by_what_its_neighbours_say() -> None:
    residuals = 0.02 * FEATURES[:, :2] + np.random.default_rng(3).normal(0, 0.05, (64, 2))
    wrong = residuals.copy()
    wrong[20, 0] += 1
    clipped = condition(FIRST_WEIGHTS, WITHIN, wrong).clipped
    assert abs(clipped[20, 0] - residuals[20, 0]) < 0.5
    assert np.array_equal(clipped[:, 1], residuals[:, 1])
