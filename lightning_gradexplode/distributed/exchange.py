"""The monitors of a run's other processes: what all have seen of a step, and which of them has failed."""

from __future__ import annotations

from lightning_gradexplode.distributed.process_group import (
    PeerFailedError,
    ProcessGroup,
    SharedLoss,
    exchange,
    tell_failure,
)
from lightning_gradexplode.records import FloatArray


class StepExchange:
    """Exchanges what each process has seen, until the monitor of one of them fails.

    Args:
        world: The processes of the run.
    """

    def __init__(self, world: ProcessGroup) -> None:
        self.world = world
        self._packed = 0
        self._withdrawn = False

    def exchange(
        self, loss: float | None, batch_idx: int, has_gradients: bool, packed: FloatArray
    ) -> tuple[SharedLoss, bool, FloatArray]:
        """Tell the others what this process has seen, and hear of them, as `measure.processes.exchange` does.

        Raises:
            PeerFailedError: The monitor of a process has failed.
        """
        self._packed = len(packed)
        try:
            return exchange(self.world, loss, batch_idx, has_gradients, packed)
        except PeerFailedError:
            self._withdrawn = True  # every process knows
            raise

    def withdraw(self, packs_gradients: bool) -> None:
        """Take part in one more exchange, only to say that this process's monitor has failed.

        Args:
            packs_gradients: Whether the others exchange their gradients' norms now, or losses only.
        """
        if self.world.size == 1 or self._withdrawn:
            return
        self._withdrawn = True
        tell_failure(self.world, self._packed if packs_gradients else 0)
