"""How parameters are spread over processes, and what processes measured of their shards combined to that of the whole.

This is the only file that recognizes a DTensor. With FSDP2 a process holds a shard of each parameter, or a replica of a
shard that other processes hold as well. Squared norms and counts are divided by the number of replicas, and added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from lightning_gradexplode.distributed.process_group import ALONE, ProcessGroup
from lightning_gradexplode.records import FloatArray, Norms

MIN_RELIABLE_NORM = 1e-140
"""Squares of float64 elements may have underflown where a norm is smaller than this."""


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor; its attribute is looked for because ``torch.distributed`` may be absent."""
    return hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """Return the elements that this process holds, in the memory of the tensor itself."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def readable(tensor: Tensor) -> Tensor | None:
    """Return a tensor as one whose elements this process can read by itself; None if that is not possible.

    It is with a plain tensor, and with a DTensor of which each process holds all elements; not on the meta device, nor
    with other tensors that have operations of their own.
    """
    if is_sharded(tensor):
        whole: Any = tensor
        if not all(one.is_replicate() for one in whole.placements):
            return None
        tensor = local_part(tensor)
    return None if tensor.is_meta or has_own_operations(tensor) else tensor


def has_own_operations(tensor: Tensor) -> bool:
    """Return whether a tensor, or the local part of a DTensor, is of a class that implements operations itself.

    Its memory may not hold its elements then, as with quantized weights that are computed with as if they were not.
    """
    own: Tensor = getattr(tensor, "_local_tensor", tensor)
    return type(own).__torch_dispatch__ is not Tensor.__torch_dispatch__


def version_of(tensor: Any) -> int:
    """Return how often a tensor was written to; a DTensor does not count what is written to its local elements."""
    version: int = getattr(tensor, "_local_tensor", tensor)._version
    return version


def is_sharded_within_rows(tensor: Any) -> bool:
    """Return whether a tensor is sharded along another dimension than its first."""
    return is_sharded(tensor) and any(one.is_shard() and one.dim != 0 for one in tensor.placements)


def ranks_of_shards(module: nn.Module) -> list[int]:
    """Return the global ranks of the processes that hold shards of a network's parameters; none if it has no shards."""
    parameters: Iterable[Any] = filter(is_sharded, module.parameters())
    meshes = {parameter.device_mesh for parameter in parameters}
    return sorted({rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()})


def from_local_part(local: Tensor, like: Any) -> Tensor:
    """Build a tensor that is sharded like another one from the elements that this process holds."""
    if not is_sharded(like):
        return local
    sharded: Tensor = _tensor_module().DTensor.from_local(
        local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return sharded


def sharded_like(whole: Tensor, like: Any) -> Tensor:
    """Shard a tensor, which every process holds, like another one, a collective."""
    if not is_sharded(like):
        return whole
    sharded: Tensor = _tensor_module().distribute_tensor(whole, like.device_mesh, like.placements)
    return sharded


def _tensor_module() -> Any:
    """Return the module of DTensor, which has a public name since torch 2.5."""
    import torch.distributed.tensor

    if hasattr(torch.distributed.tensor, "DTensor"):
        return torch.distributed.tensor
    import torch.distributed._tensor

    return torch.distributed._tensor


def replicas(tensors: Sequence[Tensor], processes: int) -> FloatArray | None:
    """Count, for each tensor, the processes that hold the same elements of it.

    Args:
        tensors: The parameters.
        processes: Number of processes of the run.

    Returns:
        Shape ``(tensors,)``; None if none of them is a DTensor.

    Raises:
        ValueError: A tensor holds partial sums, whose norm is not known.
    """
    if not any(map(is_sharded, tensors)):
        return None
    return np.array([_replicas(tensor, processes) for tensor in tensors], dtype=np.float64)


def _replicas(tensor: Any, processes: int) -> int:
    if not is_sharded(tensor):
        return processes
    mesh = tensor.device_mesh
    count = processes // int(mesh.size())
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_partial():
            raise ValueError("a parameter is a partial sum (DTensor Partial); its norm is not known")
        if placement.is_replicate():
            count *= int(mesh.size(dimension))
    return count


@dataclass(frozen=True, slots=True, eq=False)
class ShardLayout:
    """How a list of parameters is spread over processes.

    Args:
        world: The processes of the run.
        copies: Number of processes that hold the same elements of each parameter, shape ``(parameters,)``; None if no
            parameter is sharded, so that nothing has to be combined.
    """

    world: ProcessGroup = ALONE
    copies: FloatArray | None = None

    def norms(self, local: Norms) -> Norms:
        """Combine norms of what each process holds, with one collective."""
        return self.several_norms([local])[0]

    def several_norms(self, local: Sequence[Norms]) -> list[Norms]:
        """Combine several norms of the parameters, with one collective for all of them."""
        if self.copies is None:
            return list(local)
        gathered = self.world.gather(np.concatenate([self.packed_norms(norms) for norms in local]))
        return [self.unpacked_norms(part) for part in np.split(gathered, len(local), axis=1)]

    def sums(self, local: FloatArray) -> FloatArray:
        """Add up counts of what each process holds, shape ``(parameters, ...)``, with one collective."""
        if self.copies is None:
            return local
        gathered = self.world.gather(local.reshape(-1)).reshape(self.world.size, *local.shape)
        copies = self.copies.reshape(-1, *[1] * (local.ndim - 1))
        total: FloatArray = np.round((gathered / copies).sum(axis=0))
        return total

    def maxima_and_sums(self, maxima: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Combine maxima and counts of what each process holds, with one collective; NaN is the largest maximum."""
        if self.copies is None:
            return maxima, counts
        gathered = self.world.gather(np.concatenate([maxima, counts]))
        largest, parts = np.split(gathered, 2, axis=1)
        return largest.max(axis=0), np.round((parts / self.copies).sum(axis=0))

    def packed_norms(self, local: Norms) -> FloatArray:
        """Return the values to gather for `unpacked_norms`; none if no parameter is sharded."""
        if self.copies is None:
            return np.zeros(0)
        return np.concatenate([local.each / np.sqrt(self.copies), local.nonfinite / self.copies])

    def unpacked_norms(self, gathered: FloatArray) -> Norms:
        """Combine the values of `packed_norms` of all processes, shape ``(processes, 2 * parameters)``."""
        each, nonfinite = np.split(gathered, 2, axis=1)
        return Norms(self._combined(each), np.round(nonfinite.sum(axis=0)))

    def finite_norms(self, gathered: FloatArray) -> Norms | None:
        """Combine norms of what each process holds, unless elements that are not finite have to be counted first.

        Args:
            gathered: The norms of all processes as they were measured, shape ``(processes, parameters)``; what is
                negative is no norm.

        Returns:
            None where a norm is not finite, or may have lost its digits; the same on every process.
        """
        return self.uncounted_norms(gathered) if (gathered < np.inf).all() else None

    def uncounted_norms(self, gathered: FloatArray) -> Norms | None:
        """Combine norms as `finite_norms`, also those that are not finite; the elements of these are not counted.

        Args:
            gathered: As in `finite_norms`.

        Returns:
            None where a norm may have lost its digits; the same on every process.
        """
        assert self.copies is not None
        if ((gathered != 0) & (gathered < MIN_RELIABLE_NORM)).any():
            return None
        each = self._combined(gathered / np.sqrt(self.copies))
        return Norms(each, np.where(np.isfinite(each), 0.0, np.nan))

    @staticmethod
    def _combined(each: FloatArray) -> FloatArray:
        """Return the root of summed squares over processes, shape ``(parameters,)``."""
        largest = each.max(axis=0)
        usable = np.isfinite(largest) & (largest > 0)
        unit = np.where(usable, largest, 1.0)
        with np.errstate(invalid="ignore"):
            combined = unit * np.sqrt(np.square(each / unit).sum(axis=0))
        norms: FloatArray = np.where(usable, combined, largest)
        return norms
