"""Facts about a batch: its fields, their ranges and their non-finite rows. They contain no value of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ReadAs = Literal["input", "target", "constant", "factor"]
"""What an operation reads a tensor as."""


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """One tensor of a batch.

    Args:
        name: Its place in the batch: ``"[0]"``, ``"image"``, ``"labels.boxes"``; ``"batch"`` for the batch itself.
        shape: Its shape.
        dtype: Name of its type, for example ``"float32"``.
        nan_count: Number of NaN elements.
        inf_count: Number of infinite elements.
        nonfinite_rows: The first 32 rows with such an element.
        least: Smallest finite element, None if there is none.
        greatest: Largest finite element.
        mean: Mean of the finite elements.
        std: Standard deviation of the finite elements.
        usual_least: The smallest `least` over the sampled earlier batches of the run, None if there are none.
        usual_greatest: The largest `greatest` over these batches.
        usual_std: The median `std` over these batches.
        usual_nonfinite: Whether most of these batches have NaN or infinite elements in this field, too.
        outlier_rows: At most 32 rows whose largest absolute value is far above that of the other rows and of earlier
            batches.
        row_size: The median over the rows of their largest absolute value, without those of zeros; None if unknown.
        is_integral: Whether all finite elements are whole numbers.
        most_common: The most common element of a field of whole numbers, None for others.
        most_common_share: Its share of the elements.
        read_as: What an operation reads a tensor of the graph of a loss as, if the batch itself is not known: a
            ``"constant"`` is neither input nor target, a ``"factor"`` is a single number that scales another tensor.
            None for a field of a batch.
        read_by: The operation or module that reads it; empty for a field of a batch.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nan_count: int = 0
    inf_count: int = 0
    nonfinite_rows: tuple[int, ...] = ()
    least: float | None = None
    greatest: float | None = None
    mean: float | None = None
    std: float | None = None
    usual_least: float | None = None
    usual_greatest: float | None = None
    usual_std: float | None = None
    usual_nonfinite: bool = False
    outlier_rows: tuple[int, ...] = ()
    row_size: float | None = None
    is_integral: bool = False
    most_common: float | None = None
    most_common_share: float = 0.0
    read_as: ReadAs | None = None
    read_by: str = ""


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """One batch.

    Args:
        fields: Its tensors; empty if the batch is unknown.
        batch_idx: Its index in the epoch, None if that is not known.
        epoch: Index of the epoch.
        size: Number of rows, None if unknown.
        usual_size: Number of rows of most batches before it.
        is_last: Whether it is the last batch of its epoch.
        sample_indices: Index in the dataset of each row, None if it is not known exactly.
        rank: Rank of the process that had the batch, if there are several and it is known; else None.
    """

    fields: tuple[FieldFacts, ...] = ()
    batch_idx: int | None = 0
    epoch: int = 0
    size: int | None = None
    usual_size: int | None = None
    is_last: bool = False
    sample_indices: tuple[int, ...] | None = None
    rank: int | None = None
