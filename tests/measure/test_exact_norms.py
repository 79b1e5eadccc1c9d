"""Norms of tensors whose squares overflow or underflow, and of tensors that are not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gradexplode.measure.exact_norms import exact_norms

ODD: dict[str, Tensor] = {
    "overflowing": torch.tensor([3e30, -4e30]),
    "underflowing": torch.tensor([3e-30, 4e-30]),
    "double": torch.tensor([3e300, 4e300], dtype=torch.float64),
    "bfloat16": torch.tensor([3e30, 4e30], dtype=torch.bfloat16),
    "one element": torch.tensor(-2.0),
    "zeros": torch.zeros(3),
    "NaN and infinite": torch.tensor([math.inf, 1.0, math.nan]),
    "infinite": torch.tensor([1.0, -math.inf, 2.0]),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "complex": torch.tensor([3e30 + 4e30j, complex(math.nan, math.inf)]),
    "large": torch.full((3000,), 1e30),
    "large and NaN": torch.cat([torch.ones(3000), torch.tensor([math.nan])]),
}


def truth(tensor: Tensor) -> tuple[float, int]:
    """Return norm and number of non-finite elements by a plain loop over Python's numbers."""
    numbers = [complex(one) for one in tensor.reshape(-1).tolist()]
    parts = [part for one in numbers for part in (one.real, one.imag)]
    count = sum(not (math.isfinite(one.real) and math.isfinite(one.imag)) for one in numbers)
    return math.nan if any(map(math.isnan, parts)) else math.hypot(*parts), count


@pytest.mark.parametrize("names", [[name] for name in ODD] + [list(ODD), list(ODD)[::-1]], ids=lambda names: names[0])
def test_norms_and_counts_are_those_of_a_plain_loop(names: list[str]) -> None:
    """Of each kind of tensor alone, and of all of them in one list in either order."""
    norms, counts = exact_norms([ODD[name] for name in names])
    expected = [truth(ODD[name]) for name in names]
    np.testing.assert_allclose(norms, [norm for norm, _ in expected], rtol=1e-6)
    assert counts.tolist() == [count for _, count in expected]
