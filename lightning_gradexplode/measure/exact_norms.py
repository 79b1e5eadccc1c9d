"""L2 norms of tensors whose squares leave the range of their type, or that are not finite."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.elements import chunks, flat_elements, is_plain
from lightning_gradexplode.measure.norm_plan import SMALL
from lightning_gradexplode.records import FloatArray

Numbers = tuple[FloatArray, FloatArray, FloatArray]
"""The largest absolute value of each tensor, its norm divided by that, and the number of non-finite elements."""


def exact_norms(tensors: Sequence[Tensor | None]) -> tuple[FloatArray, FloatArray]:
    """Measure tensors of elements of any size, divided by their largest, with one read from the device.

    Args:
        tensors: Tensors with elements, of any kind that `flat_elements` takes.

    Returns:
        The norms (NaN if any element is NaN, else inf if any is infinite) and the numbers of non-finite elements,
        each of shape ``(tensors,)``.
    """
    small = {place: one for place, one in enumerate(tensors) if one is not None and _is_small(one)}
    others = {place: one for place, one in enumerate(tensors) if one is not None and place not in small}
    numbers = np.zeros((3, len(tensors)))
    with torch.no_grad():
        for group, measure in ((small, _together), (others, _one_by_one)):
            if group:
                numbers[:, [*group]] = measure([*group.values()])
    largest, scaled, nonfinite = numbers
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(np.isfinite(largest), largest * scaled, largest), nonfinite


def _is_small(tensor: Tensor) -> bool:
    return is_plain(tensor) and reading.is_on_host(tensor) and tensor.numel() <= SMALL


def _together(tensors: Sequence[Tensor]) -> Numbers:
    """Measure small tensors on the host, where kernels for each of them would take longer than all elements."""
    sizes = [tensor.numel() for tensor in tensors]
    starts = [0, *itertools.accumulate(sizes)][:-1]
    values = np.abs(torch.cat([flat_elements(tensor).double() for tensor in tensors]).numpy())
    largest = np.maximum.reduceat(values, starts)  # NaN if any element is
    unit = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.sqrt(np.add.reduceat(np.square(values / np.repeat(unit, sizes)), starts))
    return largest, scaled, np.add.reduceat((~np.isfinite(values)).astype(np.float64), starts)


def _one_by_one(tensors: Sequence[Tensor]) -> Numbers:
    values: list[Tensor] = []
    for tensor in tensors:
        flat = flat_elements(tensor)
        wide = reading.widest_type(flat.device)
        largest = torch.stack(torch.aminmax(flat)).abs().max().to(wide)
        if reading.is_on_host(flat) and not largest:  # as in unused parts of a model
            values += [largest, largest, largest]
            continue
        unit = torch.where(torch.isfinite(largest) & (largest > 0), largest, 1.0)
        norms = [torch.linalg.vector_norm(chunk.to(wide) / unit) for chunk in chunks(flat)]
        counts = [_count_nonfinite(chunk, tensor.is_complex()) for chunk in chunks(flat)]
        values += [largest, torch.linalg.vector_norm(torch.stack(norms)), torch.stack(counts).sum()]
    largests, scaled, nonfinite = reading.read(values).reshape(-1, 3).T
    return largests, scaled, nonfinite


def _count_nonfinite(chunk: Tensor, is_complex: bool) -> Tensor:
    """Count the elements that are not finite; a complex number is one, whichever of its parts is not."""
    bad = ~torch.isfinite(chunk)
    return torch.count_nonzero(bad.view(-1, 2).any(dim=1) if is_complex else bad)
