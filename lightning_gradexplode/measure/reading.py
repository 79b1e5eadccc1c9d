"""The one way of numbers from where tensors live to Python: few values, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.records import FloatArray

is_on_host = attrgetter("is_cpu")

_FEW = 8
"""So few numbers in the processor's memory are read one by one."""


def read(values: Sequence[Tensor]) -> FloatArray:
    """Read single numbers at once: by one transfer from an accelerator, however many there are.

    Args:
        values: Real tensors of one element, of any type, on any devices.

    Returns:
        The numbers in float64, shape ``(values,)``.
    """
    on_host = all(map(is_on_host, values))
    if on_host and len(values) < _FEW:
        return np.array([_viewed(value) for value in values], dtype=np.float64)
    numbers, order = _side_by_side(values)
    return _in_order(numbers.numpy() if on_host else _on_host(numbers), order)


class PendingRead:
    """Single numbers on their way, so that nobody has to wait for an accelerator where they are not needed yet.

    Args:
        values: Real tensors of one element, of any type, on any devices.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self._read: FloatArray | None = None
        if all(map(is_on_host, values)):
            self._read = read(values)
            return
        self._numbers, self._order = _side_by_side(values)
        if self._numbers.is_cuda:
            # Only into memory that the system does not move a copy is made while the processor goes on.
            memory = torch.empty(self._numbers.shape, dtype=self._numbers.dtype, pin_memory=True)
            memory.copy_(self._numbers, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(self._numbers.device))
            self._numbers = memory

    def values(self) -> FloatArray:
        """Wait until the numbers are there, and give them in float64, shape ``(values,)``."""
        if self._event is not None:
            self._event.synchronize()
        if self._read is None:
            self._read = _in_order(_on_host(self._numbers), self._order)
        return self._read


def _side_by_side(values: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Bring numbers together on one device, those of one type at once: a call for each would be a kernel for each.

    Returns:
        The numbers, and the places among the values that they come from.
    """
    device = next((value.device for value in values if not is_on_host(value)), values[0].device)
    alike: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        alike.setdefault((value.dtype, value.device), []).append(place)
    with torch.no_grad():
        groups = [torch.stack([_single(values[place]) for place in places]) for places in alike.values()]
        numbers = torch.cat([group.to(device, widest(device)) for group in groups])
    return numbers, [place for places in alike.values() for place in places]


def _single(value: Tensor) -> Tensor:
    return value.reshape(()) if value.dim() else value


def _in_order(numbers: FloatArray, order: list[int]) -> FloatArray:
    ordered = np.empty_like(numbers)
    ordered[order] = numbers
    return ordered


def _on_host(numbers: Tensor) -> FloatArray:
    together: FloatArray = numbers.cpu().double().numpy()
    return together


def widest(device: torch.device) -> torch.dtype:
    """Give the widest floating type that a device calculates in: Apple's have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _viewed(value: Tensor) -> float:
    if value.dtype is torch.bfloat16:  # numpy has no such type
        value = value.float()
    number: float = value.detach().numpy().item()
    return number
