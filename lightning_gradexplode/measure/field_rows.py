"""Rows of a batch's field that stand out, and the element that is the most common."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gradexplode.measure.batch_fields import Field
from lightning_gradexplode.measure.field_totals import Totals, chunk_size, flat_chunks, real_view, sample, widened
from lightning_gradexplode.measure.reading import widest_type

MAX_ROWS = 32
"""Number of rows that are named."""
OUTLIER = 10.0
"""A row stands out if its largest absolute value is more than this factor above those of the others."""
FAR_OUTLIER = 1000.0
"""The same factor above the other rows of the batch, whatever earlier batches held."""

_FEW_ROWS = 3
"""So few rows are not compared with each other."""
_MAX_BINS = 1 << 20
"""Range of whole numbers up to which each is counted; of a wider one a sample decides which is the most common."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a field that stand out, at most 32 of each kind.

    Args:
        nonfinite: Rows with a NaN or infinite element.
        outliers: Rows whose largest absolute value is far above that of the others and of earlier batches, or farther
            above that of the others.
        size: The median over the rows of their largest absolute value, without those of zeros; None if there is none.
    """

    nonfinite: tuple[int, ...] = ()
    outliers: tuple[int, ...] = ()
    size: float | None = None


def scan_rows(field: Field, usual_largest: float | None) -> Rows:
    """Find the rows of a field that stand out.

    Args:
        field: The field.
        usual_largest: The largest absolute value in earlier batches, None if unknown.
    """
    if not field.has_rows or not any(part.numel() for part in field.tensors):
        return Rows()
    found = [_row_values(part) for part in map(real_view, field.tensors)]
    bad, peaks = (torch.cat(column) for column in zip(*found, strict=True))
    others = peaks[peaks > 0]
    is_comparable = len(others) > (_FEW_ROWS if usual_largest is None else 0)
    size = float(others.median()) if len(others) else None
    reference = max(size or 0.0, usual_largest or 0.0) if is_comparable else math.inf
    stands_out = peaks > OUTLIER * reference
    if len(others) > _FEW_ROWS and size is not None:
        stands_out |= peaks > FAR_OUTLIER * size  # earlier batches may have held the same sample
    return Rows(_named(bad, field), _named(stands_out, field), size)


def most_common(field: Field, known: Totals) -> tuple[float, float]:
    """Return the most common element of a field of whole numbers, and its share of all elements."""
    least, bins = known.least, int(known.greatest - known.least) + 1
    if bins <= _MAX_BINS:
        counts: Tensor | int = 0
        for part in field.tensors:
            for chunk in flat_chunks(real_view(part)):
                places = (chunk.to(widest_type(chunk.device)) - least).nan_to_num(bins, bins, bins).long()
                counts = counts + torch.bincount(places.view(-1), minlength=bins + 1)[:bins]
        assert isinstance(counts, Tensor)
        return int(counts.argmax()) + least, float(counts.max()) / known.elements
    chosen = sample(field)
    assert chosen is not None
    values, each = torch.unique(chosen[torch.isfinite(chosen)], return_counts=True)
    return float(values[each.argmax()]), float(each.max()) / chosen.numel()


def _row_values(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each row whether it has a non-finite element, and its largest absolute value."""
    most, columns = chunk_size(tensor), math.prod(tensor.shape[1:])
    bad = torch.zeros(len(tensor), dtype=torch.bool, device=tensor.device)
    peaks = torch.zeros(len(tensor), dtype=widest_type(tensor.device), device=tensor.device)
    per_block = max(1, most // max(columns, 1))
    for start in range(0, len(tensor) if columns else 0, per_block):
        block = slice(start, start + per_block)
        rows = tensor[block].reshape(-1, columns)
        for chunk in torch.split(rows, most, dim=1):
            wide = widened(chunk)
            least, greatest = torch.aminmax(wide, dim=1) if columns > 1 else (wide[:, 0], wide[:, 0])
            peak = torch.maximum(-least, greatest)
            is_bad = ~torch.isfinite(peak)
            if bool(is_bad.any()):
                peak = torch.where(torch.isfinite(wide), wide, 0.0).abs().amax(dim=1)
            bad[block] |= is_bad
            peaks[block] = torch.maximum(peaks[block], peak.to(peaks.dtype))
    return bad, peaks


def _named(which: Tensor, field: Field) -> tuple[int, ...]:
    """Return the first rows that are marked."""
    found = which.nonzero().view(-1)
    if field.rows is not None:
        found = torch.unique(field.rows().cpu()[found.cpu()])
    return tuple(found[:MAX_ROWS].tolist())
