"""The end of a run: the training loop is restored, and the last report is written."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.current_results import CurrentResults
from lightning_gradexplode.engine.deferred_reading import DeferredReading
from lightning_gradexplode.records.log import logger


class Shutdown:
    """Restores a training loop when its run ends, or the monitor fails.

    Args:
        run: The components of the run.
        deferred: Reads its deferred steps.
        after: Measures, records and logs steps after the update.
        results: Its results, for the last report.
        remove_log_handler: Removes the handler that shows log records in a terminal.
    """

    def __init__(
        self,
        run: Components,
        deferred: DeferredReading,
        after: AfterUpdate,
        results: CurrentResults,
        remove_log_handler: Callable[[], object],
    ) -> None:
        self._run = run
        self._deferred_reading = deferred
        self._after = after
        self._results = results
        self._remove_log_handler = remove_log_handler
        self._released = False

    def close(self) -> None:
        """Restore the training loop and its optimizers. Never raises."""
        self.release()
        _call_each(self._run.optimizers.close, self._run.exchange.world.close)

    def release(self) -> None:
        """Restore the training loop, except for the hooks of optimizers, which may be running now."""
        if not self._released:
            self._released = True
            run = self._run
            _call_each(
                self._deferred_reading.keep,
                self._after.evaluate_held,
                self._check_buffers,
                run.responses.close,
                run.module_gradients.detach,
                run.clipper.close,
                self._end_console,
            )
            _call_each(self._update_report)

    def _check_buffers(self) -> None:
        if not self._run.log.incidents.is_critical and self._results.last is not None:
            self._run.responses.check_buffers(self._results.last.step, now=True)

    def _update_report(self) -> None:
        """Write the report again if it lacks an incident, or what followed it."""
        if self._run.reporter.is_stale:
            self._results.report()

    def _end_console(self) -> None:
        if self._run.console is not None:
            self._run.console.end_incident()
        self._remove_log_handler()


def _call_each(*parts: Callable[[], None]) -> None:
    for restore in parts:
        try:
            restore()
        except Exception:
            logger.exception("gradexplode: the monitor could not restore everything")
