"""The processes of a run and the one collective that the monitor uses."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.records import FloatArray


class ProcessGroup(Protocol):
    """The processes of a run."""

    size: int
    device: torch.device

    def gather(self, values: FloatArray) -> FloatArray:
        """Gather the values of all processes, a collective.

        Args:
            values: The values of this process, shape ``(n,)``, with the same ``n`` on every process.

        Returns:
            Shape ``(size, n)``, in the order of ranks, the same on every process.
        """

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Gather values without a wait for their device, a collective.

        Args:
            values: The values of this process in float64, shape ``(n,)``, with the same ``n`` on every process.

        Returns:
            Shape ``(size * n,)``, in the order of ranks, on the device that the backend communicates from.
        """


class Alone:
    """A run of a single process."""

    size = 1
    device = torch.device("cpu")

    def gather(self, values: FloatArray) -> FloatArray:
        """Return the values as the only row."""
        return values[None]

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values


class Processes:
    """A run of several processes, joined by ``torch.distributed``.

    Args:
        size: Number of processes.
        device: Device of the tensors that the backend of the process group communicates.
        group: The process group of ``torch.distributed``; None for that of all processes.
    """

    def __init__(self, size: int, device: torch.device, group: Any = None) -> None:
        self.size = size
        self.device = device
        self._group = group

    def gather(self, values: FloatArray) -> FloatArray:
        """Gather with one collective, ``all_gather_single``."""
        gathered = self.gather_tensor(torch.from_numpy(np.ascontiguousarray(values)))
        rows: FloatArray = gathered.view(self.size, -1).cpu().numpy()
        return rows

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Gather with one collective, ``all_gather_single``."""
        gathered = torch.empty(self.size * len(values), dtype=torch.float64, device=self.device)
        distributed: Any = torch.distributed
        # Up to torch 2.12 it is called ``all_gather_into_tensor``.
        gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
        gather(gathered, values.to(self.device), group=self._group)
        return gathered


ALONE = Alone()
