"""L2 norms of many tensors at once: exact to 1e-6, at about the cost of reading them once.

A float32 sum loses digits as it grows: of 1024 equal values the norm is off by up to 8e-7, of 16384 by 1e-5, of four
million random ones by up to 2e-4. A float64 sum costs two to four times as much. So tensors of up to 1024 elements are
summed in float32, those of up to 16384 in float64, and of larger ones the norms of rows of 512 elements are taken in
float32 (as fast as one float32 sum, off by at most 4e-7) and combined in float64. Values whose squares leave float32's
range are found by their result (the norm is infinite, or next to zero) and measured again, slowly, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.elements import PLAIN_TYPES, chunks, flat_elements, is_plain
from lightning_gradexplode.records import FloatArray

ROW = 512
SHORT = 1024
"""Up to so many elements a float32 sum is exact enough."""
LONG = 16384
"""From so many elements on, rows are faster than a float64 sum."""

SAFE_NORM = 1e-12
"""Below this norm the squares may have left float32's range."""


@dataclass(frozen=True, slots=True, eq=False)
class Norms:
    """L2 norms per tensor and of all together.

    Args:
        each: Shape ``(tensors,)``; 0 for an empty or missing tensor, NaN or inf where elements are.
        nonfinite: Number of NaN and infinite elements, shape ``(tensors,)``.
    """

    each: FloatArray
    nonfinite: FloatArray

    @property
    def total(self) -> float:
        """The norm of all tensors' elements together."""
        return combined_norm(self.each)

    @property
    def nonfinite_total(self) -> int:
        """Number of NaN and infinite elements in all tensors together."""
        return int(self.nonfinite.sum())


def combined_norm(norms: FloatArray) -> float:
    """Combine norms of parts to the norm of the whole, with no overflow on the way."""
    largest = float(norms.max(initial=0.0))
    if largest == 0.0 or not math.isfinite(largest):
        return math.nan if np.isnan(norms).any() else largest
    return largest * float(np.sqrt(np.square(norms / largest).sum()))


def measure_norms(tensors: Sequence[Tensor | None], divisor: float = 1.0) -> Norms:
    """Measure the L2 norm of each tensor, with one read from the device.

    Args:
        tensors: Tensors of any kind that `flat_elements` takes; None counts as empty.
        divisor: What the norms are divided by: the scale of a gradient scaler.

    Returns:
        The norms, in the order of the tensors, relative error below 1e-6 for float32 and float64; a half-precision
        tensor is summed in float32.
    """
    each = np.zeros(len(tensors))
    nonfinite = np.zeros(len(tensors))
    with torch.no_grad():
        places, norms = _quick_norms(tensors)
        each[places] = norms
        for place, norm in zip(places, norms, strict=True):
            if not SAFE_NORM <= norm < math.inf:
                tensor = tensors[place]
                assert tensor is not None
                each[place], nonfinite[place] = careful_norm(flat_elements(tensor))
                if tensor.is_complex() and nonfinite[place]:
                    nonfinite[place] = int((~torch.isfinite(tensor)).sum())
    return Norms(each / divisor, nonfinite)


def careful_norm(flat: Tensor) -> tuple[float, int]:
    """Measure one flat tensor in float64, whatever the range of its elements.

    Returns:
        The L2 norm (NaN if any element is NaN, else inf if any is infinite) and the number of non-finite elements.
    """
    norms = []
    nonfinite = 0
    for chunk in chunks(flat):
        wide = chunk.double()
        largest = float(wide.abs().max())
        if math.isfinite(largest):
            norms.append(largest * float(torch.linalg.vector_norm(wide / largest)) if largest else 0.0)
        else:
            norms.append(largest)
            nonfinite += int(wide.numel() - torch.isfinite(wide).sum())
    return combined_norm(np.asarray(norms)), nonfinite


def measure_maxima(tensors: Sequence[Tensor | None], divisor: float = 1.0) -> FloatArray:
    """Measure the largest absolute value in each tensor, with one read from the device.

    Returns:
        Shape ``(tensors,)``: the modulus for complex tensors, NaN where an element is NaN, 0 where there is none.
    """
    maxima = np.zeros(len(tensors))
    places: list[int] = []
    found: list[Tensor] = []
    with torch.no_grad():
        for place, tensor in enumerate(tensors):
            if tensor is None:
                continue
            elements = tensor if is_plain(tensor) else flat_elements(tensor)
            if not elements.numel():
                continue
            if tensor.is_complex():
                elements = torch.linalg.vector_norm(elements.view(-1, 2).double(), dim=1)
            places.append(place)
            found.extend(torch.aminmax(elements))
        if found:
            kinds = {extreme.dtype for extreme in found}
            extremes = found if len(kinds) == 1 else [extreme.double() for extreme in found]
            maxima[places] = torch.stack(extremes).view(-1, 2).abs().amax(dim=1).double().tolist()
    return maxima / divisor


def count_at_least(tensor: Tensor, border: float) -> int:
    """Count the elements with ``abs(element) >= border``, non-finite ones included."""
    real = tensor.detach().abs() if tensor.is_complex() else tensor
    return sum(int((~(chunk.abs() < border)).sum()) for chunk in chunks(flat_elements(real)))


def _quick_norms(tensors: Sequence[Tensor | None]) -> tuple[list[int], list[float]]:
    """Norms of the tensors that have elements, and their places in the list, by the kernel in the module's text."""
    narrow_places: list[int] = []
    narrow: list[Tensor] = []
    wide_places: list[int] = []
    wide: list[Tensor] = []
    strided = torch.strided
    for place, tensor in enumerate(tensors):
        if tensor is None or not (count := tensor.numel()):
            continue
        if count <= LONG and tensor.dtype is torch.float32 and type(tensor) in PLAIN_TYPES and tensor.layout is strided:
            (narrow_places if count <= SHORT else wide_places).append(place)
            (narrow if count <= SHORT else wide).append(tensor)
        elif (flat := flat_elements(tensor)).numel():
            wide_places.append(place)
            wide.append(flat if flat.dtype is torch.float64 else _row_norms(flat))
    parts = []
    if narrow:
        parts.append(torch.stack(torch._foreach_norm(narrow)).double())
    if wide:
        parts.append(torch.stack(torch._foreach_norm(wide, dtype=torch.float64)))
    return narrow_places + wide_places, torch.cat(parts).tolist() if parts else []


def _row_norms(flat: Tensor) -> Tensor:
    """Norms in float32 of rows of `ROW` elements, the rest that fills no row being one more."""
    whole = flat.numel() // ROW * ROW
    kind = None if flat.dtype is torch.float32 else torch.float32
    rows: Tensor = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=kind)
    if whole == flat.numel():
        return rows
    return torch.cat([rows, torch.linalg.vector_norm(flat[whole:], dtype=kind).view(1)])
