"""What is recorded of a batch: its fields, their ranges and their rows that are not finite. Never a sample's value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """One tensor of a batch.

    Args:
        name: Where it is in the batch: ``"[0]"``, ``"image"``, ``"labels.boxes"``; ``"batch"`` for the batch itself.
        shape: Its shape.
        dtype: Name of its type.
        nan_count: Number of NaN elements.
        inf_count: Number of infinite elements.
        nonfinite_rows: The first 32 rows with such an element.
        least: Smallest finite element, None if there is none.
        greatest: Largest finite element.
        mean: Mean of the finite elements.
        std: Standard deviation of the finite elements.
        usual_least: The smallest `least` over earlier batches of the run, None if none was looked at.
        usual_greatest: The largest `greatest` over earlier batches.
        usual_std: The median `std` over earlier batches.
        usual_nonfinite: Whether most earlier batches that were looked at held NaN or infinite elements here, too.
        outlier_rows: Rows (at most 32) whose largest absolute value is far above that of the other rows and of earlier
            batches.
        is_integral: Whether all finite elements are whole numbers.
        most_common: The commonest element of a field of whole numbers, None for others.
        most_common_share: Its share of the elements.
        zero_share: Share of elements that are exactly zero.
        constant_rows: The first 32 rows of more than one element whose elements are all the same, such as a fully
            masked sequence or labels that are all ignored.
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
    is_integral: bool = False
    most_common: float | None = None
    most_common_share: float = 0.0
    zero_share: float = 0.0
    constant_rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """One batch.

    Args:
        fields: Its tensors.
        batch_idx: Its index in the epoch.
        epoch: Index of the epoch.
        size: Number of rows, None if unknown.
        usual_size: Number of rows of most batches before it.
        is_last: Whether it is the last one of its epoch.
        sample_indices: Index in the dataset of each row, None where that cannot be known exactly.
        rank: Rank of the process whose batch it is, where several processes know that; None else.
    """

    fields: tuple[FieldFacts, ...] = ()
    batch_idx: int = 0
    epoch: int = 0
    size: int | None = None
    usual_size: int | None = None
    is_last: bool = False
    sample_indices: tuple[int, ...] | None = None
    rank: int | None = None
