"""Norms of tensors whose squares leave float32's range, and how many of their elements are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.elements import chunks, flat_elements
from lightning_gradexplode.measure.maxima import measure_maxima
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import FloatArray

SAFE_NORM = 1e-12
"""Below this norm the squares may have left float32's range."""


def is_doubtful(norm: float) -> bool:
    """Tell whether a norm may be what it is only because squares have left float32's range."""
    return not SAFE_NORM <= norm < math.inf


def are_trusted(norms: FloatArray) -> bool:
    """Tell whether no norm is doubtful, as is nearly always so."""
    return len(norms) == 0 or bool(norms.min() >= SAFE_NORM and norms.max() < math.inf)  # a NaN is no minimum


def careful_norms(tensors: Sequence[Tensor | None]) -> tuple[FloatArray, FloatArray]:
    """Measure tensors in float64, whatever the range of their elements, with two reads from the device.

    Returns:
        The L2 norms (NaN if any element is NaN, else inf if any is infinite) and the numbers of non-finite elements,
        each of shape ``(tensors,)``.
    """
    flats = [torch.zeros(0) if tensor is None else flat_elements(tensor) for tensor in tensors]
    maxima = measure_maxima(flats)
    finite = np.isfinite(maxima)
    second: list[Tensor] = []
    for tensor, flat, largest in zip(tensors, flats, maxima, strict=True):
        if largest == 0.0:
            second.append(torch.zeros(()))
        elif math.isfinite(largest):
            second.append(_sum([torch.square(chunk.double() / largest).sum() for chunk in chunks(flat)]))
        else:
            assert tensor is not None
            second.append(_sum([_count_nonfinite(chunk, tensor.is_complex()) for chunk in chunks(flat)]))
    found = read(second)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.where(finite, maxima * np.sqrt(found), maxima)
    return norms, np.where(finite, 0.0, found)


def _sum(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _count_nonfinite(chunk: Tensor, pairs: bool) -> Tensor:
    """Count the elements that are not finite; a complex number is one, whichever of its parts is not."""
    bad = ~torch.isfinite(chunk)
    return torch.count_nonzero(bad.view(-1, 2).any(dim=1) if pairs else bad)
