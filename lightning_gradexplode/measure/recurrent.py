"""Recurrent modules: the dimension of time, and the singular values of the recurrent matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_gradexplode.distributed.shard_layout import is_sharded

MAX_EXACT_ROWS = 256
"""Largest number of rows for which singular values are exact; for larger matrices they are iterated."""
ITERATIONS = 30


def time_dimension(module: nn.Module) -> int | None:
    """Return the dimension of time of a recurrent module's batched input; None for other modules."""
    return (1 if module.batch_first else 0) if isinstance(module, nn.RNNBase) else None


def singular_value(module: nn.Module) -> float:
    """Compute the largest singular value of a recurrent module's recurrent matrices, over 1 / gamma of its activation.

    Of gated modules each gate's matrix counts by itself; 1 / gamma is 4 for the sigmoid gates and 1 for the tanh one.

    Returns:
        NaN for other modules, and where a matrix is not finite or spread over processes.
    """
    found = [
        largest_singular_value(matrix) / bound
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and name.startswith("weight_hh")
        for matrix, bound in _gates(module, parameter.detach())
    ]
    return max(found) if found else math.nan


def largest_singular_value(matrix: Tensor) -> float:
    """Compute the largest singular value of a matrix, exact if it is small, else by iteration, to a few percent.

    Returns:
        NaN if the matrix is not finite.
    """
    wide = matrix.float()
    if not bool(torch.isfinite(wide).all()):
        return math.nan
    if max(wide.shape) <= MAX_EXACT_ROWS:
        return float(torch.linalg.matrix_norm(wide, 2))
    # A fixed start, so that no random number of the run is drawn.
    vector = torch.cos(torch.arange(wide.shape[1], dtype=wide.dtype, device=wide.device) ** 2)
    for _ in range(ITERATIONS):
        vector = wide.T @ (wide @ vector)
        vector = vector / vector.norm().clamp_min(1e-30)
    return float((wide @ vector).norm())


def _gates(module: nn.Module, weight: Tensor) -> list[tuple[Tensor, float]]:
    """Split a recurrent weight into the gates' matrices, each with 1 / gamma of its activation."""
    if is_sharded(weight):
        return []
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):  # input, forget, cell, output
        return list(zip(weight.chunk(4), (4.0, 4.0, 1.0, 4.0), strict=True))
    if isinstance(module, (nn.GRU, nn.GRUCell)):  # reset, update, new
        return list(zip(weight.chunk(3), (4.0, 4.0, 1.0), strict=True))
    return [(weight, 1.0)]
