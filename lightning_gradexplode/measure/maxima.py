"""Largest absolute values of tensors, and how many of their elements reach a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.elements import chunks, flat_elements, is_plain
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import FloatArray


def measure_maxima(tensors: Sequence[Tensor | None], divisor: float = 1.0) -> FloatArray:
    """Measure the largest absolute value of each tensor, with one read from the device.

    Args:
        tensors: Tensors of any kind that `flat_elements` takes; None counts as empty.
        divisor: What the values are divided by: the scale of a gradient scaler.

    Returns:
        Shape ``(tensors,)``: the modulus for complex tensors, NaN where an element is NaN, 0 where there is none.
    """
    maxima = np.zeros(len(tensors))
    places: list[int] = []
    extremes: list[Tensor] = []
    with torch.no_grad():
        for place, tensor in enumerate(tensors):
            if tensor is None:
                continue
            elements = tensor if is_plain(tensor) else flat_elements(tensor)
            if not elements.numel():
                continue
            if tensor.is_complex():
                elements = torch.linalg.vector_norm(
                    elements.view(-1, 2).to(reading.widest_type(elements.device)), dim=1
                )
            places.append(place)
            extremes.extend(torch.aminmax(elements))
        maxima[places] = np.abs(read(extremes)).reshape(-1, 2).max(axis=1)  # the maximum of NaN and a number is NaN
    return maxima / divisor


def count_at_least(tensors: Sequence[Tensor], threshold: float) -> FloatArray:
    """Count the elements with ``abs(element) >= threshold``, non-finite ones included, with one read from the device.

    Returns:
        Shape ``(tensors,)``; of complex elements the modulus is compared.
    """
    counts = np.zeros(len(tensors))
    places: list[int] = []
    parts: list[Tensor] = []
    with torch.no_grad():
        for place, tensor in enumerate(tensors):
            real = tensor.detach().abs() if tensor.is_complex() else tensor
            for chunk in chunks(flat_elements(real)):
                places.append(place)
                parts.append(torch.count_nonzero(~(chunk.abs() < threshold)))
        np.add.at(counts, places, read(parts))
    return counts
