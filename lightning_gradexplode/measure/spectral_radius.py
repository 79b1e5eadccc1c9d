"""The largest absolute eigenvalue of a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_EXACT = 256
"""Number of rows up to which eigenvalues are computed; the radius of larger matrices is estimated."""

_ITERATIONS = 100
_VECTORS = 4


def spectral_radius(matrix: Tensor) -> float:
    """Return a square matrix's spectral radius: exact up to 256 rows, else estimated to a few percent.

    The estimate is Gelfand's formula on a block of vectors: their growth per multiplication, averaged over the second
    half of 200 multiplications, so that the growth at the beginning, which is that of the singular values, does not
    count. Of a matrix that is far from normal, whose powers grow for longer than that, it is that growth, which is
    larger than the radius. The block starts the same each time, and no random number is drawn.

    Returns:
        NaN if the matrix is not finite.
    """
    with torch.no_grad():
        wide = matrix.detach().float()
        if not bool(torch.isfinite(wide).all()):
            return math.nan
        if len(wide) <= LARGEST_EXACT:
            return float(torch.linalg.eigvals(wide.cpu().double()).abs().max())
        places = torch.arange(len(wide) * _VECTORS, dtype=torch.float64, device="cpu").view(len(wide), _VECTORS)
        vectors = torch.cos(places**2).to(wide)
        logs = torch.zeros(_VECTORS, dtype=torch.float32, device=wide.device)
        for iteration in range(2 * _ITERATIONS):
            vectors = wide @ vectors
            norms = torch.linalg.vector_norm(vectors, dim=0).clamp_min(1e-30)
            vectors = vectors / norms
            if iteration >= _ITERATIONS:
                logs += norms.log()
        return float((logs.max() / _ITERATIONS).exp())
