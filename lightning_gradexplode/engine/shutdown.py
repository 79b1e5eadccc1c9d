"""The end of a run: the training loop is restored, and the last report is written."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.deferred_steps import DeferredSteps
from lightning_gradexplode.records.log import logger


class Shutdown:
    """Restores a training loop when its run ends, or the monitor fails.

    Args:
        components: The components of the run.
        deferred: The steps whose numbers are read later.
        after: Evaluates the calm steps that are held, and has the last step.
        remove_log_handler: Removes the handler that shows log records in a terminal.
    """

    def __init__(
        self,
        components: Components,
        deferred: DeferredSteps,
        after: AfterUpdate,
        remove_log_handler: Callable[[], object],
    ) -> None:
        self._components = components
        self._deferred = deferred
        self._after = after
        self._remove_log_handler = remove_log_handler
        self._released = False

    def close(self) -> None:
        """Restore the training loop and its optimizers. Never raises."""
        self.release()
        _call_each(self._components.optimizers.close, self._components.exchange.world.close)

    def release(self) -> None:
        """Restore the training loop, except for the hooks of optimizers, which may be running now."""
        if not self._released:
            self._released = True
            components = self._components
            _call_each(
                self._deferred.keep,
                self._after.evaluate_held,
                self._check_buffers,
                components.responses.close,
                components.module_gradients.detach,
                components.clipper.close,
                components.graphs.close,
                self._end_console,
            )
            _call_each(self._update_report)

    def _check_buffers(self) -> None:
        components, last = self._components, self._after.last
        if last is not None and not components.log.incidents.is_critical:
            components.responses.check_buffers(last.step, now=True)

    def _update_report(self) -> None:
        """Write the report again if it lacks an incident, or what followed it."""
        if self._components.reporter.is_stale:
            self._after.evaluate_held()
            self._components.reporter.write(self._components.responses.attempts)

    def _end_console(self) -> None:
        if self._components.console is not None:
            self._components.console.end_incident()
        self._remove_log_handler()


def _call_each(*parts: Callable[[], None]) -> None:
    for restore in parts:
        try:
            restore()
        except Exception:
            logger.exception("gradexplode: the monitor could not restore everything")
