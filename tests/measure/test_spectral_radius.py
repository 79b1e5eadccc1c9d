"""The largest absolute eigenvalue."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gradexplode.measure.spectral_radius import spectral_radius


def random_matrix(size: int) -> Tensor:
    """Draw a matrix of normally distributed elements."""
    return torch.randn(size, size, generator=torch.Generator().manual_seed(size)) / math.sqrt(size)


@pytest.mark.parametrize(
    ("matrix", "tolerance"),
    [
        (torch.tensor([[0.0, 2.0], [-2.0, 0.0]]), 1e-6),
        (torch.tensor([[1.0, 1000.0], [0.0, 0.5]]), 1e-6),
        (random_matrix(100), 1e-5),
        (random_matrix(300), 0.03),
        (random_matrix(400) * 30, 0.03),
        (torch.linalg.qr(random_matrix(300)).Q * 1.1, 0.001),
        (torch.diag(torch.linspace(0.1, 1.2, 500)) + torch.diag(torch.full((499,), 0.01), 1), 0.03),
    ],
    ids=["rotation", "shear", "small", "large", "large and steep", "orthogonal", "not normal"],
)
def test_the_radius_is_that_of_the_eigenvalues(matrix: Tensor, tolerance: float) -> None:
    """It agrees with numpy's eigenvalues, complex pairs included."""
    truth = abs(np.linalg.eigvals(matrix.double().numpy())).max()
    assert spectral_radius(matrix) == pytest.approx(truth, rel=tolerance)


def test_a_matrix_that_is_not_finite_has_no_radius() -> None:
    """One NaN is enough, at any size."""
    for size in (3, 300):
        matrix = random_matrix(size)
        matrix[0, 1] = math.inf
        assert math.isnan(spectral_radius(matrix))


def test_no_random_number_is_drawn() -> None:
    """The run's random numbers stay where they are."""
    before = torch.get_rng_state()
    spectral_radius(random_matrix(300).bfloat16())
    assert torch.equal(torch.get_rng_state(), before)
