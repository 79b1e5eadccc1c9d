"""Totals of the elements of a batch's field: counts, range and moments."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradexplode.measure.batch_fields import Field
from lightning_gradexplode.measure.reading import is_on_host, widest_type
from lightning_gradexplode.records import FloatArray

SAMPLED = 1 << 16
"""Number of elements that are sampled of a field."""
TOTALS = 7
"""Number of values that `totals` returns."""

_RUN = 64
"""Consecutive elements of a sample: single ones, far apart in memory, would cost ten times as much to read."""
_PARTS = 16
"""Number of tensors of a list that are sampled."""
_SMALL_VARIANCE = 1e-30
"""Below it a float32 has lost digits."""
_CHUNK_ON_HOST = 1 << 18
_CHUNK = 1 << 24
"""Elements that are converted at a time."""


def totals(values: Tensor) -> Tensor:
    """Compute the totals of some elements, without waiting for their device.

    Args:
        values: Real numbers of any type, at least one.

    Returns:
        Shape ``(7,)``: number of finite elements, of NaN and of whole numbers; the least and the greatest finite
        element; the mean of the finite ones; the sum of their squared differences from it.
    """
    wide = values.to(widest_type(values.device))
    finite = torch.isfinite(wide)
    known = torch.where(finite, wide, 0.0)
    count = finite.sum()
    mean = known.sum() / count.clamp_min(1)
    numbers = [
        count,
        torch.isnan(wide).sum(),
        ((known == known.round()) & finite).sum(),
        torch.where(finite, wide, math.inf).amin(),
        torch.where(finite, wide, -math.inf).amax(),
        mean,
        torch.where(finite, wide - mean, 0.0).square().sum(),
    ]
    return torch.stack([number.to(wide.dtype) for number in numbers])


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of elements, as plain numbers; see `totals`.

    Args:
        elements: Number of elements.
        count: Number of finite ones.
        nans: Number of NaN.
        wholes: Number of whole numbers.
        least: The least finite element, infinity if there is none.
        greatest: The greatest finite element, minus infinity if there is none.
        mean: Mean of the finite elements.
        squares: Sum of their squared differences from it.
    """

    elements: int = 0
    count: int = 0
    nans: int = 0
    wholes: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, elements: int, numbers: FloatArray | Sequence[float]) -> Totals:
        """Build them of a number of elements and the values that `totals` has returned for these."""
        count, nans, wholes, *rest = (float(number) for number in numbers)
        return cls(elements, int(count), int(nans), int(wholes), *rest)

    def __add__(self, other: Totals) -> Totals:
        """Combine the totals of two sets of elements (Chan, Golub and LeVeque 1983, equations 2.1)."""
        count = self.count + other.count
        if not self.count or not other.count:
            mean, squares = (self.mean, self.squares) if self.count else (other.mean, other.squares)
        else:
            distance = other.mean - self.mean
            mean = self.mean + distance * (other.count / count)
            squares = self.squares + other.squares + distance * distance * (self.count * other.count / count)
        return Totals(
            self.elements + other.elements,
            count,
            self.nans + other.nans,
            self.wholes + other.wholes,
            min(self.least, other.least),
            max(self.greatest, other.greatest),
            mean,
            squares,
        )

    @property
    def infinities(self) -> int:
        """Number of infinite elements."""
        return self.elements - self.count - self.nans

    @property
    def std(self) -> float | None:
        """Standard deviation of the finite elements, None if there are none."""
        return min(math.sqrt(self.squares / self.count), sys.float_info.max) if self.count else None

    @property
    def are_whole(self) -> bool:
        """Whether all finite elements are whole numbers."""
        return 0 < self.count == self.wholes


def sample(field: Field) -> Tensor | None:
    """Return some of a field's elements, at most 65,536, at places that are spread evenly over it; None if it is empty.

    The same places are taken at each call, and no random number is drawn.
    """
    parts = field.tensors[:: -(-len(field.tensors) // _PARTS) or 1]
    found = [_spread(part, SAMPLED // len(parts)) for part in map(real_view, parts) if part.numel()]
    return None if not found else found[0] if len(found) == 1 else torch.cat(found)


def _spread(tensor: Tensor, most: int) -> Tensor:
    """Return at most so many elements: runs of consecutive ones, a fixed distance apart."""
    strides = tensor.stride()
    tensor = tensor.permute(sorted(range(tensor.dim()), key=lambda dimension: -strides[dimension]))
    if not tensor.is_contiguous():  # it has gaps, and a copy of all would cost too much
        tensor = tensor[:: max(1, min(len(tensor), tensor.numel() // most))]
    flat = tensor.reshape(-1)
    if len(flat) <= most:
        return flat
    runs = max(1, most // _RUN)
    distance, inner = len(flat) // runs, math.prod(tensor.shape[1:])
    while distance > _RUN and math.gcd(distance, inner) > 1:  # or the runs would begin at some columns only
        distance -= 1
    return flat[: runs * distance].view(runs, distance)[:, : min(_RUN, most)].reshape(-1)


def scan(field: Field) -> Totals:
    """Compute the totals of all elements of a field."""
    chunks = (chunk for part in field.tensors for chunk in flat_chunks(real_view(part)))
    return sum(map(_totals, chunks), Totals())


def _totals(chunk: Tensor) -> Totals:
    """Compute the totals of some elements, by fewer and faster operations if all are finite, as nearly always."""
    wide = widened(chunk)
    some = wide[:_RUN]
    wholes = (wide == wide.round()).sum() if bool((some == some.round()).all()) else some.new_zeros(())
    found = [*torch.var_mean(wide, correction=0), *torch.aminmax(wide), wholes]
    numbers = torch.stack([one.to(widest_type(chunk.device)) for one in found]).tolist()
    variance, mean, least, greatest, wholes = numbers
    has_underflow = variance < _SMALL_VARIANCE and least != greatest
    if has_underflow or not all(map(math.isfinite, numbers)):
        return Totals.of(chunk.numel(), totals(chunk).tolist())
    count = chunk.numel()
    return Totals(count, count, 0, int(wholes), least, greatest, mean, variance * count)


def real_view(tensor: Tensor) -> Tensor:
    """View a tensor as real numbers, its rows staying rows."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flat_chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Split a tensor into flat pieces of limited size."""
    if not tensor.numel():
        return
    most = chunk_size(tensor)
    if tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), most)
        return
    for rows in torch.split(tensor, max(1, most // math.prod(tensor.shape[1:]))):
        yield from torch.split(rows.reshape(-1), most)


def widened(chunk: Tensor) -> Tensor:
    """Convert elements to a type with room for each, and with operations on it."""
    if chunk.dtype in (torch.float32, torch.float64):
        return chunk
    return chunk.to(torch.float32 if chunk.dtype.itemsize <= 2 else widest_type(chunk.device))


def chunk_size(tensor: Tensor) -> int:
    """Return the number of elements that are converted at a time."""
    return _CHUNK_ON_HOST if is_on_host(tensor) else _CHUNK
