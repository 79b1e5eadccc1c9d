"""The processes of a run and the one collective that the monitor uses."""

from __future__ import annotations

import re
import weakref
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.records.log import logger

SECONDS_TO_LOG = 30.0
"""Time after which a wait for another process is logged, once in a run."""

WAITING = (
    "gradexplode: at an optimizer step this process has waited %.0f s for the monitor of another one, and waits at "
    "most %.0f s; if that process has left the step out, as where its loss is NaN, each waits for the other"
)

TIMED_OUT = "Operation timed out"
"""What torch raises at the end of a wait that goes on in its backend."""

INITIAL_CAPACITY = 31
"""Number of values that a message holds at first: what a step exchanges, except for the norms of shards."""

MAX_CAPACITY = 4096
"""Largest number of values that a message holds after longer ones were sent: twice 2048 parameters."""


class ProcessFailedError(RuntimeError):
    """The monitor of another process has failed or ended, so that the one of this process has to end as well."""


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

    def leave(self, message: FloatArray) -> None:
        """End the part of this process in the exchanges, which the other ones learn of in the next one.

        Args:
            message: What they receive, of the shape that they send.
        """

    def close(self) -> None:
        """End what the monitor has opened for its collectives."""


class Alone:
    """A run of a single process, or one of several that exchanges nothing with the others.

    Args:
        reason: Why it exchanges nothing with the others; None if there are no others.
        first_rank: Its global rank.
    """

    size = 1
    device = torch.device("cpu")

    def __init__(self, reason: str | None = None, first_rank: int = 0) -> None:
        self.reason = reason
        self.first_rank = first_rank

    def gather(self, values: FloatArray) -> FloatArray:
        """Return the values as the only row."""
        return values[None]

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def leave(self, message: FloatArray) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Processes:
    """A run of several processes, joined by a process group of ``torch.distributed`` that the training uses, too.

    Args:
        size: Number of processes.
        device: Device of the tensors that the backend of the process group communicates.
        group: The process group; None for that of all processes.
        first_rank: Global rank of the first one.
    """

    def __init__(self, size: int, device: torch.device, group: Any = None, first_rank: int = 0) -> None:
        self.size = size
        self.device = device
        self.first_rank = first_rank
        self._group = group

    def gather(self, values: FloatArray) -> FloatArray:
        """Gather with one collective."""
        gathered = self.gather_tensor(torch.from_numpy(np.ascontiguousarray(values)))
        rows: FloatArray = gathered.view(self.size, -1).cpu().numpy()
        return rows

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Gather with one collective."""
        gathered = torch.empty(self.size * len(values), dtype=torch.float64, device=self.device)
        distributed: Any = torch.distributed
        # Up to torch 2.12 it is called ``all_gather_into_tensor``.
        gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
        gather(gathered, values.to(self.device), group=self._group)
        return gathered

    def leave(self, message: FloatArray) -> None:
        """Send the message in one more collective."""
        self.gather(message)

    def close(self) -> None:
        """Do nothing."""


class ConnectedProcesses(Processes):
    """Several processes whose monitors exchange over connections of their own, on the host.

    Collectives of the monitor cannot meet those of the training, and once a process closes its connections, or ends,
    the others are not left waiting for it. Each message begins with its length, since the backend aborts a process
    that receives another number of values than it sends; values beyond its capacity follow in a second message.

    Args:
        size: Number of processes.
        backend: A ``ProcessGroupGloo`` that is not used otherwise.
        first_rank: Global rank of the first one.
        seconds: Time after which the backend ends a wait.
    """

    def __init__(self, size: int, backend: Any, first_rank: int = 0, seconds: float = 1800.0) -> None:
        super().__init__(size, torch.device("cpu"), first_rank=first_rank)
        self._open = [backend]
        self._capacity = INITIAL_CAPACITY
        self._latest: tuple[Tensor, ...] = ()
        self._seconds, self._has_logged = seconds, False
        weakref.finalize(self, self._open.clear)  # before the interpreter ends, where the run was not closed

    def gather_tensor(self, values: Tensor) -> Tensor:
        """Gather with one collective; with two where more values are sent than ever before."""
        own, length, capacity = values.to(self.device), len(values), self._capacity
        message = torch.zeros(1 + capacity, dtype=torch.float64, device=self.device)
        message[0] = length
        message[1 : 1 + length] = own[:capacity]
        gathered = self._all_gather(message)
        if (gathered[:, 0] != length).any():
            self.close()
            raise ProcessFailedError("the monitors of the processes are not at the same point of the run")
        values = gathered[:, 1 : 1 + length]
        if length > capacity:
            values = torch.cat([values, self._all_gather(own[capacity:])], dim=1)
            self._capacity = min(length, MAX_CAPACITY)
        return values.reshape(-1)

    def _all_gather(self, values: Tensor) -> Tensor:
        if not self._open:
            raise ProcessFailedError("the monitor of this process has ended")
        gathered = torch.empty(self.size * len(values), dtype=torch.float64, device=self.device)
        # A thread of the backend may hold the tensors a little longer. It must not be the last one to hold them when
        # the interpreter ends, which aborts the process.
        self._latest = gathered, values
        try:
            self._wait(self._open[0]._allgather_base(gathered, values.contiguous()))
        except RuntimeError as error:
            self.close()
            reason = re.sub(r"\[[^\]]*\.cc:\d+\] ", "", str(error)).partition("\n")[0]  # without the backend's own file
            raise ProcessFailedError(f"the monitor of another process has ended ({reason[:80]})") from error
        return gathered.view(self.size, -1)

    def _wait(self, work: Any) -> None:
        """Wait for a collective, and log once if that takes long."""
        if not self._has_logged:
            try:
                work.wait(timedelta(seconds=SECONDS_TO_LOG))
                return
            except RuntimeError as error:
                if TIMED_OUT not in str(error):
                    raise
            self._has_logged = True
            logger.warning(WAITING, SECONDS_TO_LOG, self._seconds)
        work.wait()

    def leave(self, message: FloatArray) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._open.clear()


ALONE = Alone()
