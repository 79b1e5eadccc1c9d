"""Numbers of several processes made one: what they saw of a step, agreed upon with one small collective.

Every process sends the same few float64 values and gets those of all, so that each comes to the same numbers, and
from them to the same findings. Where parameters are sharded (DTensor), a process holds a part of each, or a copy of
what others hold as well; counts and squared norms are divided by the number of copies, and added up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.norms import Norms
from lightning_gradexplode.records import FloatArray


class PeerFailedError(RuntimeError):
    """The monitor of another process has failed, so that this one cannot go on either."""


class ProcessGroup(Protocol):
    """The processes of a run."""

    size: int

    def gather(self, values: FloatArray) -> FloatArray:
        """Send values, shape ``(n,)``, and get those of all processes, shape ``(size, n)``, in the order of ranks."""


class Alone:
    """A run of a single process."""

    size = 1

    def gather(self, values: FloatArray) -> FloatArray:
        """Give the values back."""
        return values[None]


class Processes:
    """A run of several processes, joined by ``torch.distributed``.

    Args:
        size: Number of processes.
        device: Where the process group's backend takes tensors.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._device = device

    def gather(self, values: FloatArray) -> FloatArray:
        """Gather by one ``all_gather_into_tensor``."""
        mine = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        everyones = torch.empty(self.size * len(values), dtype=torch.float64, device=self._device)
        torch.distributed.all_gather_into_tensor(everyones, mine)
        gathered: FloatArray = everyones.view(self.size, -1).cpu().numpy()
        return gathered


ALONE = Alone()


@dataclass(frozen=True, slots=True, eq=False)
class ShardLayout:
    """How a list of parameters is spread over processes.

    Args:
        world: The processes.
        copies: How many processes hold the same elements of each parameter, shape ``(parameters,)``; None if no
            parameter is sharded, so that each process has them all.
    """

    world: ProcessGroup = ALONE
    copies: FloatArray | None = None

    def norms(self, local: Norms) -> Norms:
        """Combine norms of what each process holds."""
        return self.several_norms([local])[0]

    def several_norms(self, locals_: Sequence[Norms]) -> list[Norms]:
        """Combine several norms of the parameters, with one collective for all of them."""
        if self.copies is None:
            return list(locals_)
        gathered = self.world.gather(np.concatenate([self.packed_norms(local) for local in locals_]))
        return [self.unpacked_norms(part) for part in np.split(gathered, len(locals_), axis=1)]

    def sums(self, local: FloatArray) -> FloatArray:
        """Add up counts of what each process holds; the first dimension is that of the parameters."""
        if self.copies is None:
            return local
        gathered = self.world.gather(local.reshape(-1)).reshape(self.world.size, *local.shape)
        copies = self.copies.reshape(-1, *[1] * (local.ndim - 1))
        total: FloatArray = np.round((gathered / copies).sum(axis=0))
        return total

    def maxima_and_sums(self, maxima: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Combine maxima and counts of what each process holds, with one collective; among maxima NaN wins."""
        if self.copies is None:
            return maxima, counts
        gathered = self.world.gather(np.concatenate([maxima, counts]))
        largest, parts = np.split(gathered, 2, axis=1)
        return largest.max(axis=0), np.round((parts / self.copies).sum(axis=0))

    def packed_norms(self, local: Norms) -> FloatArray:
        """Give what has to be sent for `unpacked_norms`; nothing if no parameter is sharded."""
        if self.copies is None:
            return np.zeros(0)
        return np.concatenate([local.each / np.sqrt(self.copies), local.nonfinite / self.copies])

    def unpacked_norms(self, gathered: FloatArray) -> Norms:
        """Combine what all processes have sent by `packed_norms`."""
        each, nonfinite = np.split(gathered, 2, axis=1)
        largest = each.max(axis=0)
        usable = np.isfinite(largest) & (largest > 0)
        unit = np.where(usable, largest, 1.0)
        with np.errstate(invalid="ignore"):
            combined = unit * np.sqrt(np.square(each / unit).sum(axis=0))
        return Norms(np.where(usable, combined, largest), np.round(nonfinite.sum(axis=0)))


def copies_of(tensors: Sequence[Tensor], world_size: int) -> FloatArray | None:
    """Count, for each tensor, the processes that hold the same elements of it.

    Returns:
        Shape ``(tensors,)``; None if none of them is a DTensor.

    Raises:
        ValueError: A tensor's values are partial sums, of which no norm can be told.
    """
    if not any(hasattr(tensor, "device_mesh") for tensor in tensors):
        return None
    return np.array([_copies(tensor, world_size) for tensor in tensors], dtype=np.float64)


def _copies(tensor: Any, world_size: int) -> int:
    if not hasattr(tensor, "device_mesh"):
        return world_size
    mesh = tensor.device_mesh
    copies = world_size // int(mesh.size())
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_partial():
            raise ValueError("a parameter is a partial sum (DTensor Partial); its norm is not known")
        if placement.is_replicate():
            copies *= int(mesh.size(dimension))
    return copies


@dataclass(frozen=True, slots=True)
class SharedLoss:
    """The loss of a step over all processes.

    Args:
        value: The mean of all, or the first one that is not finite; None if no process has a loss.
        batch_idx: Index of the batch it belongs to.
        rank: The process with the loss that is not finite, else None.
    """

    value: float | None
    batch_idx: int
    rank: int | None = None


_FAILED = 1.0
_HEAD = 4


def exchange(
    world: ProcessGroup, loss: float | None, batch_idx: int, has_gradients: bool, packed: FloatArray
) -> tuple[SharedLoss, bool, FloatArray]:
    """Tell all processes what this one saw of a step, and hear what they saw.

    Args:
        world: The processes.
        loss: This process's loss, None without one.
        batch_idx: Index of its batch.
        has_gradients: Whether it has any gradient.
        packed: What else is gathered, of the same length everywhere.

    Returns:
        The loss of all, whether any process has gradients, and what was gathered, shape ``(processes, len(packed))``.

    Raises:
        PeerFailedError: The monitor of a process has failed.
    """
    if world.size == 1:
        return SharedLoss(loss, batch_idx), has_gradients, packed[None]
    absent = loss is None
    head = [0.0, math.nan if loss is None else loss, batch_idx, 2.0 * has_gradients + absent]
    gathered = world.gather(np.concatenate([head, packed]))
    failed = np.flatnonzero(gathered[:, 0] == _FAILED)
    if len(failed):
        raise PeerFailedError(f"the monitor of rank {failed[0]} has failed")
    flags = gathered[:, 3].astype(int)
    return _shared_loss(gathered, flags % 2 == 0, batch_idx), bool((flags >= 2).any()), gathered[:, _HEAD:]


def tell_failure(world: ProcessGroup, length: int) -> None:
    """Take part in one `exchange` only to say that this process's monitor has failed.

    Args:
        world: The processes.
        length: Length of what the others have packed.
    """
    values = np.zeros(_HEAD + length)
    values[0] = _FAILED
    world.gather(values)


def _shared_loss(gathered: FloatArray, present: Any, batch_idx: int) -> SharedLoss:
    losses = gathered[:, 1]
    if not present.any():
        return SharedLoss(None, batch_idx)
    bad = np.flatnonzero(present & ~np.isfinite(losses))
    if len(bad):
        rank = int(bad[0])
        return SharedLoss(float(losses[rank]), int(gathered[rank, 2]), rank)
    return SharedLoss(float(losses[present].mean()), batch_idx)
