"""The one way of numbers from where tensors live to Python: few values, all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.records import FloatArray


def read(values: Sequence[Tensor]) -> FloatArray:
    """Read small tensors at once: one transfer from an accelerator, however many there are.

    Args:
        values: Real tensors, of any shape and type, on any devices.

    Returns:
        Their elements in float64, one tensor's after the other's, as one flat array.
    """
    if not values:
        return np.zeros(0)
    flat = [value.detach().reshape(-1) for value in values]
    if all(value.is_cpu for value in flat):
        # A view by numpy costs a tenth of what `Tensor.item` does, and `Tensor.cat` of many tiny tensors even more.
        return np.concatenate([_viewed(value) for value in flat])
    device = next(value.device for value in flat if not value.is_cpu)
    together: FloatArray = torch.cat([value.to(device, widest(device)) for value in flat]).cpu().double().numpy()
    return together


def widest(device: torch.device) -> torch.dtype:
    """Give the widest floating type that a device calculates in: Apple's have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _viewed(value: Tensor) -> FloatArray:
    if value.dtype is torch.bfloat16:
        value = value.float()
    array: FloatArray = value.numpy().astype(np.float64)
    return array
