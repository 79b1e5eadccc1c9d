"""The largest absolute eigenvalue of a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_EXACT_ROWS = 128
"""Number of rows up to which eigenvalues are computed; the radius of larger matrices is estimated."""

_ITERATIONS = 100


def spectral_radius(matrix: Tensor) -> float:
    """Return a square matrix's spectral radius: exact up to 128 rows, else estimated to a few percent.

    The estimate is Gelfand's formula on a vector: its growth per multiplication, averaged over the second half of 200
    multiplications, so that the growth at the beginning, which is that of the singular values, does not count. Of a
    matrix that is far from normal, whose powers grow for longer than that, it is that growth, which is larger than the
    radius. The vector is the same each time, and no random number is drawn.

    Returns:
        NaN if the matrix is not finite.
    """
    with torch.no_grad():
        wide = matrix.detach().float()
        if not bool(torch.isfinite(wide).all()):
            return math.nan
        if len(wide) <= MAX_EXACT_ROWS:
            return float(torch.linalg.eigvals(wide.cpu().double()).abs().max())
        vector = torch.cos(torch.arange(len(wide), dtype=torch.float64, device="cpu") ** 2).to(wide)
        growth = torch.zeros((), dtype=torch.float32, device=wide.device)
        for iteration in range(2 * _ITERATIONS):
            vector = wide @ vector
            norm = torch.linalg.vector_norm(vector).clamp_min(1e-30)
            vector = vector / norm
            if iteration >= _ITERATIONS:
                growth += norm.log()
        return float((growth / _ITERATIONS).exp())
