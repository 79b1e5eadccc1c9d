"""The processes of a run and the one collective that the monitor uses."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from lightning_gradexplode.records import FloatArray


class ProcessGroup(Protocol):
    """The processes of a run."""

    size: int

    def gather(self, values: FloatArray) -> FloatArray:
        """Gather the values of all processes, a collective.

        Args:
            values: The values of this process, shape ``(n,)``, with the same ``n`` on every process.

        Returns:
            Shape ``(size, n)``, in the order of ranks, the same on every process.
        """


class Alone:
    """A run of a single process."""

    size = 1

    def gather(self, values: FloatArray) -> FloatArray:
        """Return the values as the only row."""
        return values[None]


class Processes:
    """A run of several processes, joined by ``torch.distributed``.

    Args:
        size: Number of processes.
        device: Device of the tensors that the backend of the process group communicates.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._device = device

    def gather(self, values: FloatArray) -> FloatArray:
        """Gather with one ``all_gather_into_tensor``."""
        local = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        gathered = torch.empty(self.size * len(values), dtype=torch.float64, device=self._device)
        torch.distributed.all_gather_into_tensor(gathered, local)
        rows: FloatArray = gathered.view(self.size, -1).cpu().numpy()
        return rows


ALONE = Alone()
