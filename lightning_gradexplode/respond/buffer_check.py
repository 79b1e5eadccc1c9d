"""A periodic check that the buffers which training changes are finite."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradexplode.distributed.shard_layout import version_of
from lightning_gradexplode.measure.reading import PendingRead
from lightning_gradexplode.respond.buffers import Buffer, buffers_of, is_finite

INTERVAL = 16
"""Number of steps between two checks."""


class BufferCheck:
    """Finds buffers that training changes and that are not finite, although loss and gradients may be.

    In training a normalization layer divides by the deviation of the batch. A running average that has overflowed
    therefore shows only in validation, and stays infinite. The buffers are checked every `INTERVAL` steps. Where they
    may be restored, they are copied at each check; a copy is used only after the check has found it finite.

    Besides running averages, buffers that were written to between two checks are included. They are reported for NaN,
    and for infinity in some elements if the buffer was finite before; if all elements are infinite, this is taken to be
    a reset on purpose.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._steps = 0
        self._first_versions: dict[Buffer, tuple[int, int]] = {}  # identity and count of writes at the first check
        self._written: set[Buffer] = set()
        self._finite_once: set[Buffer] = set()
        self._checked: list[Buffer] = []  # at the last check
        self._finite_copies: dict[Buffer, Tensor] = {}
        self._new_copies: dict[Buffer, Tensor] = {}  # of the last check, not known to be finite yet
        self._norms: PendingRead | None = None  # of the last check, until they are read

    def run(self, copies: bool, now: bool = False, steps: int = 1) -> list[str]:
        """Check the buffers if they are due, at the end of a step.

        On an accelerator their norms are read at the next check, so that the host does not wait for the device.

        Args:
            copies: Whether to copy the buffers, so that they can be restored.
            now: Whether to check even if no check is due; the host may then wait for the device.
            steps: Number of steps since the last call.

        Returns:
            Names of the buffers that are not finite, or were not at the last check.
        """
        before, self._steps = self._steps, self._steps + steps
        if not now and before // INTERVAL == self._steps // INTERVAL:
            return []
        with torch.no_grad():
            if self._norms is not None and self._read_nonfinite(self._norms):
                return self._nonfinite_names()
            self._begin_check(copies)
            can_read = self._norms is not None and (now or self._norms.is_there)
            return self._nonfinite_names() if can_read and self._read_nonfinite(self._norms) else []

    def restore(self) -> bool:
        """Restore the modules with non-finite buffers from finite copies, and return whether all are finite now.

        Call it after `run` has returned names.
        """
        with torch.no_grad():
            nonfinite = [buffer for buffer in self._checked if self._is_wrongly_nonfinite(buffer)]
            modules = {buffer.module for buffer in nonfinite}
            for buffer, copy in self._finite_copies.items():
                if buffer.module in modules:
                    buffer.write(copy)
            return all(is_finite(buffer.tensor) for buffer in nonfinite)

    def clear(self) -> None:
        """Drop all copies."""
        self._finite_copies, self._new_copies, self._norms = {}, {}, None

    def _begin_check(self, copies: bool) -> None:
        """Start to measure the norms of the buffers that training changes, if there are any."""
        buffers = [one for one in buffers_of(self._network) if one.is_average or self._is_written(one)]
        if not buffers:
            return
        tensors = [buffer.local for buffer in buffers]
        self._new_copies = {buffer: one.clone() for buffer, one in zip(buffers, tensors, strict=True)} if copies else {}
        self._checked, self._norms = buffers, PendingRead(torch._foreach_norm(tensors))

    def _is_written(self, buffer: Buffer) -> bool:
        """Return whether a buffer of floating point was written to, or replaced, since its first check."""
        tensor = buffer.tensor
        if buffer not in self._written and tensor.is_floating_point():
            version = id(tensor), version_of(tensor)
            if self._first_versions.setdefault(buffer, version) != version:
                self._written.add(buffer)
        return buffer in self._written

    def _read_nonfinite(self, norms: PendingRead | None) -> bool:
        """Read the norms of the last check, and return whether one is not finite."""
        assert norms is not None
        finite = np.isfinite(norms.values())
        self._finite_once.update(itertools.compress(self._checked, finite))
        if finite.all():
            self._finite_copies = self._new_copies
        self._new_copies, self._norms = {}, None
        return not finite.all()

    def _nonfinite_names(self) -> list[str]:
        return [buffer.name for buffer in self._checked if self._is_wrongly_nonfinite(buffer)]

    def _is_wrongly_nonfinite(self, buffer: Buffer) -> bool:
        values = buffer.local
        if is_finite(values):
            return False
        is_partial = bool(torch.isnan(values).any()) or not bool(torch.isinf(values).all())
        return buffer.is_average or (is_partial and buffer in self._finite_once)
