"""Transfers of numbers from a device to the host: few values, all in one transfer. There are no others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.records import FloatArray

is_on_host = attrgetter("is_cpu")

_FEW = 8
"""Largest number of tensors of one type that are not concatenated by torch before they become arrays."""


def read(values: Sequence[Tensor]) -> FloatArray:
    """Read numbers with one transfer from an accelerator, however many tensors hold them.

    Args:
        values: Real tensors of any type, shape and device.

    Returns:
        The elements of all tensors, one after the other, in float64.
    """
    return PendingRead(values).values()


class PendingRead:
    """Numbers in transfer to the host, which does not wait for an accelerator before it needs them.

    Args:
        values: Real tensors of any type, shape and device.

    Attributes:
        is_there: Whether `values` returns without waiting for an accelerator.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        self.is_there = all(map(is_on_host, values))
        if self.is_there:
            self._read = from_host(values)
            return
        numbers, self._spans = _concatenated(values)
        if numbers.is_cuda:
            # A copy runs beside the host only into pinned memory.
            pinned = torch.empty(numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True)
            pinned.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(numbers.device))
            numbers = pinned
        self._numbers = numbers

    def arrives_within(self, seconds: float) -> bool:
        """Return whether the numbers are on the host, or will be after a wait of at most some seconds."""
        if self.is_there or self._event is None:
            return self.is_there or self._numbers.is_cpu
        end = time.monotonic() + seconds
        while not self._event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def values(self) -> FloatArray:
        """Wait for the transfer, and return the elements of all tensors, one after the other, in float64."""
        if not self.is_there:
            if self._event is not None:
                self._event.synchronize()
            numbers = to_host(self._numbers)
            self._read = np.concatenate([numbers[span] for span in self._spans])
            self.is_there = True
        return self._read


def from_host(values: Sequence[Tensor]) -> FloatArray:
    """Return the elements of tensors in the memory of the host, one after the other, in float64."""
    if len(values) > _FEW and len({value.dtype for value in values}) == 1:  # as minima and maxima of many tensors
        with torch.no_grad():
            values = [torch._C._nn.flatten_dense_tensors(list(values))]
    if len(values) == 1 and values[0].dtype is torch.float64 and values[0].ndim == 1:  # as the norms of a step
        return _as_array(values[0])
    return np.concatenate([*map(_as_array, values)], dtype=np.float64) if values else np.zeros(0)


def _as_array(value: Tensor) -> FloatArray:
    if value.requires_grad:
        value = value.detach()
    if value.dtype is torch.bfloat16:  # which numpy does not have
        value = value.float()
    array: FloatArray = value.numpy()
    return array if array.ndim == 1 else array.reshape(-1)


def _concatenated(values: Sequence[Tensor]) -> tuple[Tensor, list[slice]]:
    """Concatenate numbers on one device with a kernel per type and device.

    Returns:
        The numbers, and which of them are those of each tensor.
    """
    device = next((value.device for value in values if not is_on_host(value)), values[0].device)
    groups: dict[Any, list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault((value.dtype, value.device), []).append(place)
    with torch.no_grad():
        parts = [torch.cat([values[place].reshape(-1) for place in places]) for places in groups.values()]
        numbers = torch.cat([part.to(device, widest_type(device)) for part in parts])
    order = [place for places in groups.values() for place in places]
    ends = list(itertools.accumulate(values[place].numel() for place in order))
    spans = dict(zip(order, map(slice, [0, *ends], ends), strict=False))
    return numbers, [spans[place] for place in range(len(values))]


def to_host(numbers: Tensor) -> FloatArray:
    """Return numbers on the host, in float64; those of an accelerator are waited for."""
    array: FloatArray = numbers.cpu().double().numpy()
    return array


def widest_type(device: torch.device) -> torch.dtype:
    """Return the widest floating type of a device; Apple's GPUs and many other accelerators have no float64."""
    return torch.float64 if device.type in ("cpu", "cuda", "meta") else torch.float32
