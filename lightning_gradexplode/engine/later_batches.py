"""The batches after an incident, in which the operation may be seen that computed non-finite data from finite ones."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose.graph import DataOperations, GraphFault
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.records import FieldFacts, Operation, Replay
from lightning_gradexplode.records.replay import OBSERVED_LATER


class LaterBatches:
    """Observes how a training loop computes its data, after a tensor without a gradient was not finite.

    Attributes:
        is_looking: Whether the operation is wanted and may still be found.
        step: The step of the incident.
    """

    def __init__(self) -> None:
        self._operations: DataOperations | None = None
        self._field: FieldFacts | None = None
        self._is_running = False
        self.is_looking = False
        self.step = -1

    def look_for(self, step: int, fault: GraphFault) -> None:
        """Begin to look for the operation that has made a tensor of a loss non-finite, if there is such a tensor.

        Args:
            step: The step of the loss.
            fault: What the graph of the loss shows.
        """
        replay = fault.replay
        if replay is None or replay.source != "batch":
            return
        self._field = next((one for one in fault.fields if one.name == replay.source_name), None)
        self._operations = self._operations or DataOperations()
        self.is_looking, self.step = self._field is not None, step

    def resume(self) -> None:
        """Observe the operations that follow, until the next loss."""
        operations = self._operations
        if self.is_looking and operations is not None:
            self._is_running = bool(collect_or_log("the operations on the data", operations.begin))
            self.is_looking = self._is_running

    def pause(self) -> Operation | None:
        """Stop at a loss, and return the operation if it was found; then no further batch is observed."""
        operations = self._operations
        if not self._is_running or operations is None:
            return None
        self._is_running = False
        operations.end()
        found = next((one.operation for one in operations.entries if self._is_alike(one.shape)), None)
        operations.entries.clear()
        if found is not None:
            self.is_looking = False
        return found

    def _is_alike(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor has the sizes of that of the incident; the last batch may have fewer rows."""
        field = self._field
        return field is not None and shape[1:] == field.shape[1:] and len(shape) == len(field.shape)


def with_operation(replay: Replay, operation: Operation) -> Replay:
    """Return what the graph of a loss shows, with the operation that has made its data non-finite.

    Args:
        replay: What it shows.
        operation: The operation, observed in a later batch.
    """
    return replace(
        replay,
        first=replace(operation, rows=replay.source_rows),
        source=None,
        source_name=None,
        source_rows=(),
        notes=(OBSERVED_LATER,),
    )
