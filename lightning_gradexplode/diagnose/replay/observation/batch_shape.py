"""Which rows of a batch the elements of a tensor inside of a step belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_gradexplode.measure.batch_fields import Field, batch_size
from lightning_gradexplode.measure.field_rows import MAX_ROWS


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The sizes by which the rows of a batch are known inside of a step.

    Args:
        size: Number of rows of the batch, None if unknown.
        lengths: The sizes of its second dimension, such as the number of time steps.
    """

    size: int | None
    lengths: frozenset[int]

    @classmethod
    def of(cls, fields: Sequence[Field]) -> BatchShape:
        """Return the shape of a batch with these fields."""
        size = batch_size(fields)
        pairs = [field.shape[:2] for field in fields if len(field.shape) > 1 and size in field.shape[:2]]
        return cls(size, frozenset(pair[1] if pair[0] == size else pair[0] for pair in pairs))

    def rows(self, mask: Tensor) -> tuple[int, ...]:
        """Return the rows in which a tensor holds true elements, at most 32.

        The dimension of the rows is the first one if its size is the number of rows; the second one of a tensor whose
        first dimension is the time steps; or a first dimension in which rows are flattened with time steps, or with the
        heads of an attention. Otherwise the result is empty, since a size may equal the number of rows by chance.
        """
        size, shape = self.size, mask.shape
        if size is None or size < 2 or not shape:
            return ()
        if shape.count(size) > 1 and mask.stride(0) < max(mask.stride()):
            return ()  # transposed, so that another dimension of this size is that of the rows
        if shape[0] == size:
            rows = mask.flatten(1).any(1) if len(shape) > 1 else mask
        elif len(shape) > 1 and shape[1] == size and shape[0] in self.lengths:
            rows = mask.transpose(0, 1).flatten(1).any(1)
        elif shape[0] % size == 0 and (shape[0] // size in self.lengths or self.lengths & set(shape[1:])):
            rows = mask.reshape(size, -1).any(1)
        else:
            return ()
        return tuple(rows.nonzero().flatten()[:MAX_ROWS].tolist())
