"""The exchange of each step: one small collective in which all processes share losses, norms and failures.

Every process sends the same few float64 values and receives those of all, so that each computes the same numbers, and
from them the same findings. What is measured on an accelerator is packed and gathered there, and read later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.distributed.process_group import ProcessFailedError, ProcessGroup
from lightning_gradexplode.records import FloatArray, Norms

_HEADER = 4
"""Number of values before the packed ones: the status of the process, its loss, its batch, its flags."""

_STEPS, _FAILED, _MISSING, _ENDS_BATCH = 0.0, 1.0, 2.0, 3.0
"""Status of a process that makes a step, whose monitor has failed, that leaves a step out, or that ends a batch."""


@dataclass(frozen=True, slots=True)
class SharedLoss:
    """The loss of a step over all processes.

    Args:
        value: The mean over processes, or the first value that is not finite; None if no process has a loss.
        batch_idx: Index of the batch it belongs to.
        rank: Rank of the process whose loss is not finite, else None.
    """

    value: float | None
    batch_idx: int
    rank: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SharedStep:
    """What all processes know of a step.

    Args:
        loss: The loss.
        has_gradients: Whether any process has gradients.
        notes: The note of each process.
        packed: The further values of all, shape ``(processes, n)``.
    """

    loss: SharedLoss
    has_gradients: bool
    notes: tuple[int, ...]
    packed: FloatArray


class StepExchange:
    """Exchanges what each process measured of a step, until the monitor of one of them fails.

    Args:
        world: The processes of the run.

    Attributes:
        has_started: Whether a step was exchanged by `start` since this was set to False.
    """

    def __init__(self, world: ProcessGroup) -> None:
        self.world = world
        self.has_started = False
        self._length = 0
        self._ended = False

    def exchange(
        self,
        loss: float | None,
        batch_idx: int,
        has_gradients: bool,
        packed: FloatArray,
        note: int = 0,
        ends_batch: bool = False,
    ) -> SharedStep:
        """Send what this process measured of a step, and receive what all measured.

        Args:
            loss: Loss of this process, None without one.
            batch_idx: Index of its batch.
            has_gradients: Whether it has any gradient.
            packed: Further values, shape ``(n,)``, with the same ``n`` on every process.
            note: What else the others have to know, a number below 2^50.
            ends_batch: Whether the batch is over, and this is its loss; each step of it was exchanged before.

        Raises:
            ProcessFailedError: The monitor of a process has failed, or only some of the processes end a batch.
        """
        self._length = len(packed)
        if self.world.size == 1:
            return SharedStep(SharedLoss(loss, batch_idx), has_gradients, (note,), packed[None])
        status = _ENDS_BATCH if ends_batch else _STEPS
        header = [status, math.nan if loss is None else loss, batch_idx, _flags(loss, has_gradients, note)]
        return self.finish(self.world.gather(np.concatenate([header, packed])), batch_idx)

    def start(self, loss: Tensor | None, batch_idx: int, has_gradients: bool, packed: Tensor, note: int = 0) -> Tensor:
        """Send what this process measured of a step, without a wait for the device that it was measured on.

        Args:
            loss: Loss of this process, of one element, None without one.
            batch_idx: Index of its batch.
            has_gradients: Whether it has any gradient.
            packed: Further values, shape ``(n,)`` in float64, with the same ``n`` on every process.
            note: As in `exchange`.

        Returns:
            What all processes sent, to be read and given to `finish`.
        """
        self._length, self.has_started = len(packed), True

        def filled(value: float) -> Tensor:
            # A kernel with the value as its argument; a copy from the host would wait.
            return torch.full((1,), value, dtype=torch.float64, device=packed.device)

        own = filled(math.nan) if loss is None else loss.reshape(1).to(packed.device, torch.float64)
        header = [filled(0.0), own, filled(batch_idx), filled(_flags(loss, has_gradients, note))]
        return self.world.gather_tensor(torch.cat([*header, packed]))

    def finish(self, gathered: FloatArray, batch_idx: int) -> SharedStep:
        """Return what all processes sent, as `exchange` does.

        Args:
            gathered: What `start` returned, on the host; of any shape.
            batch_idx: Index of the batch of this process.

        Raises:
            ProcessFailedError: The monitor of a process has failed, or only some of the processes make the step.
        """
        gathered = gathered.reshape(self.world.size, -1)
        self._check(gathered)
        flags = [int(flag) for flag in gathered[:, 3]]
        return SharedStep(
            _shared_loss(gathered, batch_idx),
            any(flag & 2 for flag in flags),
            tuple(flag >> 2 for flag in flags),
            gathered[:, _HEADER:],
        )

    def report_missing_step(self, loss: float | None, batch_idx: int) -> None:
        """Participate in the exchange of a step that this process leaves out.

        Args:
            loss: Loss of this process, None if it is not known.
            batch_idx: Index of its batch.

        Raises:
            ProcessFailedError: Another process has made the step, or its monitor has failed.
        """
        header = [_MISSING, math.nan if loss is None else loss, batch_idx, _flags(loss, False, 0)]
        self._check(self.world.gather(np.concatenate([header, np.zeros(self._length)])))

    def agree(self, values: FloatArray) -> FloatArray:
        """Return what each process has decided, shape ``(processes, n)``; a collective like `exchange`.

        Args:
            values: What this process has decided, shape ``(n,)``.

        Raises:
            ProcessFailedError: The monitor of a process has failed.
        """
        gathered = self.world.gather(np.concatenate([[0.0], values]))
        self._check(gathered)
        return gathered[:, 1:]

    def broadcast(self, data: bytes, rank: int) -> bytes:
        """Return what one process sends; two collectives like `agree`.

        Args:
            data: What this process would send.
            rank: Rank of the process that sends.

        Raises:
            ProcessFailedError: The monitor of a process has failed.
        """
        length = int(self.agree(np.array([float(len(data))]))[rank, 0])
        own = data[:length].ljust(-(-length // 8) * 8, b"\0")
        gathered = self.agree(np.frombuffer(own, dtype=np.float64))  # only copied, so that no bit of it changes
        return bytes(gathered[rank].tobytes())[:length]

    def withdraw_from_agreement(self, length: int) -> None:
        """Participate in one more `agree`, with the only message that the monitor of this process has failed.

        Args:
            length: Number of values that the other processes send.
        """
        self._send_failure(1 + length)

    def withdraw(self, packs_gradients: bool) -> None:
        """Participate in one more exchange, with the only message that the monitor of this process has failed.

        Args:
            packs_gradients: Whether the other processes exchange norms of gradients now, or losses only.
        """
        self._send_failure(_HEADER + (self._length if packs_gradients else 0))

    def _send_failure(self, length: int) -> None:
        if self.world.size > 1 and not self._ended:
            self._ended = True
            self.world.leave(np.concatenate([[_FAILED], np.zeros(length - 1)]))

    def _check(self, gathered: FloatArray) -> None:
        statuses = gathered[:, 0]
        if not statuses.any():
            return
        failed = np.flatnonzero(statuses == _FAILED)
        if len(failed):
            self._ended = True
            raise ProcessFailedError(f"the monitor of rank {failed[0]} has failed")
        if (statuses != statuses[0]).any():
            self._ended = True
            raise ProcessFailedError(_missing_step(gathered))


def nan_unless_all_finite(own: Norms, totals: FloatArray) -> Norms:
    """Return norms that are NaN if those of any process are not finite, so that all processes decide alike.

    Args:
        own: The norms of this process.
        totals: The total norms of all processes, of any shape.
    """
    if np.isfinite(totals).all() or not math.isfinite(own.total):
        return own
    return Norms(np.full_like(own.each, np.nan), np.full_like(own.nonfinite, np.nan))


def _missing_step(gathered: FloatArray) -> str:
    """Return which process leaves out a step that others make."""
    rank = int(np.flatnonzero(gathered[:, 0])[0])
    loss, has_loss = gathered[rank, 1], gathered[rank, 3] % 2 == 0
    reason = f", with a loss of {loss:g}" if has_loss and not math.isfinite(loss) else ""
    return (
        f"rank {rank} leaves out the optimizer step of its batch {int(gathered[rank, 2])}{reason}, which other "
        "processes make, so that the weights of the processes may differ from here on"
    )


def _flags(loss: object, has_gradients: bool, note: int) -> int:
    return 4 * note + 2 * has_gradients + (loss is None)


def _shared_loss(gathered: FloatArray, batch_idx: int) -> SharedLoss:
    losses, present = gathered[:, 1], gathered[:, 3] % 2 == 0
    if not present.any():
        return SharedLoss(None, batch_idx)
    nonfinite = np.flatnonzero(present & ~np.isfinite(losses))
    if len(nonfinite):
        rank = int(nonfinite[0])
        return SharedLoss(float(losses[rank]), int(gathered[rank, 2]), rank)
    return SharedLoss(float(losses[present].mean()), batch_idx)
