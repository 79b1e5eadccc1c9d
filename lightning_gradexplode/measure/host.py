"""The one way of numbers from where tensors live to Python: few values, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.records import FloatArray

is_on_host = attrgetter("is_cpu")


def read(values: Sequence[Tensor]) -> FloatArray:
    """Read single numbers at once: by one transfer from an accelerator, however many there are.

    Args:
        values: Real tensors of one element, of any type, on any devices.

    Returns:
        The numbers in float64, shape ``(values,)``.
    """
    if all(map(is_on_host, values)):
        return np.array([_viewed(value) for value in values], dtype=np.float64)
    device = next(value.device for value in values if not is_on_host(value))
    flat = [value.detach().reshape(1).to(device, widest(device)) for value in values]
    together: FloatArray = torch.cat(flat).cpu().double().numpy()
    return together


def widest(device: torch.device) -> torch.dtype:
    """Give the widest floating type that a device calculates in: Apple's have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _viewed(value: Tensor) -> float:
    if value.dtype is torch.bfloat16:  # numpy has no such type
        value = value.float()
    number: float = value.detach().numpy().item()
    return number
