"""Hessians: sums of inputs, and the factor of their inverse."""

import pytest
import torch

from llmpq.errors import QuantizationError
from llmpq.quantization.hessian import DAMPING, Factor, Hessian


def inputs(tokens: int, features: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator)
    return torch.randn(tokens, features, generator=generator) @ mix


def test_inputs_added_in_pieces_and_shapes_are_the_mean_of_all_outer_products() -> None:
    x = inputs(60, 24)
    hessian = Hessian(24)
    hessian.add(x[:20].view(4, 5, 24))
    hessian.add(x[20:].to(torch.float64))
    assert hessian.tokens == 60
    torch.testing.assert_close(hessian.mean(), x.t() @ x / 60, rtol=1e-4, atol=1e-4)
    assert not bool(Hessian(3).mean().any())


def test_the_factor_is_upper_triangular_and_squares_to_the_inverse_in_falling_order() -> None:
    x = inputs(200, 32)
    matrix = x.t() @ x / 200
    factor = Factor.of(matrix, 200)
    diagonal = matrix.diagonal()[factor.order]
    assert torch.equal(diagonal, matrix.diagonal().sort(descending=True).values)
    assert torch.equal(factor.inverse, factor.inverse.triu())
    damped = (matrix + DAMPING * matrix.diagonal().mean() * torch.eye(32))[factor.order][:, factor.order]
    torch.testing.assert_close(factor.inverse.t() @ factor.inverse, torch.linalg.inv(damped), rtol=1e-2, atol=1e-4)


def test_the_loss_of_an_error_is_its_mean_square_over_the_inputs() -> None:
    x, error = inputs(50, 16), torch.randn(3, 16)
    factor = Factor.of(x.t() @ x / 50, 50)
    torch.testing.assert_close(factor.loss(error), (x @ error.t()).square().mean(0), rtol=1e-3, atol=1e-3)


def test_fewer_tokens_than_features_and_dead_columns_still_have_a_factor() -> None:
    x = inputs(4, 32)
    x[:, 7] = 0.0
    assert bool(torch.isfinite(Factor.of(x.t() @ x / 4, 4).inverse).all())
    assert bool(torch.isfinite(Factor.of(torch.zeros(8, 8), 0).inverse).all())


def test_a_matrix_that_is_nearly_positive_definite_gets_more_damping() -> None:
    matrix = torch.eye(8)
    matrix[0, 1] = matrix[1, 0] = 1.05  # an eigenvalue of -0.05: one per cent is too little, ten suffice
    assert bool(torch.isfinite(Factor.of(matrix, 10).inverse).all())
    matrix[0, 1] = matrix[1, 0] = 100.0
    with pytest.raises(QuantizationError, match=r"Hessian of 10 tokens is not positive definite; use a longer calibration text"):
        Factor.of(matrix, 10)


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(QuantizationError, match=r"inputs that are NaN or infinite; use another text"):
        Factor.of(torch.full((4, 4), torch.inf), 3)
