"""A process group of one real process."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.records import FloatArray


class RecordedProcesses:
    """A process group in which the values of the other processes are given; this process is the last one."""

    def __init__(self, *others: FloatArray) -> None:
        self.size = len(others) + 1
        self.others = others
        self.sent: list[FloatArray] = []

    device = torch.device("cpu")

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Do the same with tensors."""
        return torch.from_numpy(self.gather(values.numpy()).reshape(-1))

    def gather(self, values: FloatArray) -> FloatArray:
        """Record what is sent, and return it as the row after those of the others."""
        self.sent.append(values)
        return np.stack([*self.others, values])

    def leave(self, message: FloatArray) -> None:
        """Send the message."""
        self.gather(message)

    def close(self) -> None:
        """Do nothing."""
