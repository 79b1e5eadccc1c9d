"""The samples of a dataset that a batch consists of, where that can be known exactly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from lightning_gradexplode.measure.batch_fields import Field, batch_size, fields_of

INDEX_NAMES = ("idx", "index", "indices", "sample_id", "sample_idx", "sample_index")
"""Names of fields that hold the indices of the samples."""


def sample_indices(batch: Any, loader: Any = None, batch_idx: int | None = None) -> tuple[int, ...] | None:
    """Return the index in the dataset of each row of a batch.

    Args:
        batch: The batch.
        loader: The data loader that it came from, None if unknown.
        batch_idx: Number of batches that the loader has returned in this epoch before this one, None if unknown.

    Returns:
        The values of a field of the batch that is named as one of indices (`INDEX_NAMES`) and holds whole, unique
        numbers. Else the indices that torch's own ``SequentialSampler`` or ``DistributedSampler`` yields for this
        batch; neither the run's sampler nor a random generator of the run is touched. None for any other sampler, for
        the user's own ``collate_fn``, which may change the order of rows, and where the number of rows is not what the
        loader would have collated.
    """
    fields = fields_of(batch)
    size = batch_size(fields)
    if not size:
        return None
    named = (_indices_in(field, size) for field in fields if field.name.rpartition(".")[2].lower() in INDEX_NAMES)
    found = next((indices for indices in named if indices is not None), None)
    if found is not None or loader is None or batch_idx is None:
        return found
    return _loaded_indices(loader, batch_idx, size)


def _indices_in(field: Field, size: int) -> tuple[int, ...] | None:
    tensor = field.tensors[0] if len(field.tensors) == 1 else torch.cat([one.view(-1) for one in field.tensors])
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool or tensor.numel() != size:
        return None
    indices = tuple(tensor.reshape(-1).tolist())
    return indices if len(set(indices)) == size and min(indices) >= 0 else None


def _loaded_indices(loader: Any, batch_idx: int, size: int) -> tuple[int, ...] | None:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler or loader.collate_fn is not default_collate:
        return None
    order = _order(batches.sampler)
    if order is None:
        return None
    start = batch_idx * batches.batch_size
    indices = tuple(islice(order[start : start + batches.batch_size], batches.batch_size))
    return indices if len(indices) == size else None


def _order(sampler: Any) -> Sequence[int] | None:
    """Return the order in which a sampler goes through the dataset, None if it is drawn at random."""
    if type(sampler) is SequentialSampler:
        return range(len(sampler))
    if type(sampler) is DistributedSampler:
        # It draws from a generator of its own, made anew from seed and epoch each time; a copy shares nothing with it.
        return list(copy.copy(sampler))
    return None
