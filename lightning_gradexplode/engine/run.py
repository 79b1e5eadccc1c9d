"""One training run: its start, interruptions and end.

The methods that a training loop calls in each batch are in `engine/batches.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.batches import Batches
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.conflicts import conflicts
from lightning_gradexplode.engine.failure import never_fatal
from lightning_gradexplode.engine.interrupted_steps import InterruptedSteps
from lightning_gradexplode.engine.joint_start import allowed, begin_together
from lightning_gradexplode.engine.step import Phase
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.guarded import GuardedLoop
from lightning_gradexplode.loggers.console import log_to_terminal
from lightning_gradexplode.measure.graph_capture import GraphCapture
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe
from lightning_gradexplode.respond import ExplosionError


class TrainingRun(Batches):
    """Monitors one training run. An adapter in `lightning_gradexplode.hosts` calls it as the training goes on.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        state: The state of an earlier run to continue from, as `state_dict` returned it.
    """

    def __init__(self, arguments: Arguments, loop: TrainingLoop, state: Mapping[str, Any]) -> None:
        loop = GuardedLoop(loop)
        remove_log_handler: Callable[[], object] = log_to_terminal() if loop.is_main_process else lambda: None
        failure, lines = None, []
        try:
            arguments = allowed(arguments, loop)
            try:
                components = Components.build(arguments, loop, self.before_step, self.after_step, self.within_step)
                lines = [*conflicts(arguments, loop)] if loop.is_main_process else []
            except Exception as error:
                failure = error
            begin_together(loop.process_group, arguments, failure)
        except Exception:
            loop.process_group.close()
            remove_log_handler()
            raise
        super().__init__(
            components, loop, GraphCapture(loop.is_main_process), arguments.clip is not None, remove_log_handler
        )
        self._interrupted = InterruptedSteps(components, self._left_out)
        self._components.responses.start()
        fresh = [f"in the checkpoint's state, {line}" for line in self._components.load_state_dict(state)]
        for line in [*fresh, *lines]:
            logger.warning("gradexplode: %s", line)
        if self._clips:
            loop.use_measured_norm(self._components.clipper.clip_by_measured_norm)
        self._components.optimizers.listen()  # last: a run that could not be built must not be called

    @never_fatal
    def flush(self) -> None:
        """Read the numbers that were deferred; within a batch, responses to them are called at the next update."""
        self._deferred_reading.read()
        if not self._in_batch and not self._components.agreement.by_notes:
            self._deferred_reading.settle()
            self._after.end_batch()

    @never_fatal
    def finish_deferred(self) -> None:
        """Finish the steps whose numbers were deferred, between two batches; a collective call."""
        self._deferred_reading.finish()
        self._after.end_batch()

    @never_fatal
    def finish_before_checkpoint(self) -> bool | None:
        """Finish the steps of several processes that were held until the next exchange; a collective call.

        Within a batch, the responses to findings are called at the next update.

        Returns:
            Whether that may have changed weights, optimizers or schedules; None if no step was finished.
        """
        deferred, agreement = self._components.deferred, self._components.agreement
        if not agreement.by_notes:
            return None
        self._deferred_reading.finish(has_effects=False)
        if self._in_batch or not deferred.detected:
            return None
        found_any = deferred.found_any(agreement)
        self._deferred_reading.settle()
        self._after.end_batch()
        return found_any

    @never_fatal
    def aborted(self, error: BaseException) -> None:
        """Log what was measured of a step that an exception has interrupted.

        The other processes may not have an exception, so that nothing is exchanged with them here. Of a step whose
        numbers were deferred, those are kept that were exchanged when it began and have arrived.

        Args:
            error: The exception.
        """
        try:
            self._finish_interrupted(error)
        except ExplosionError:
            raise
        except Exception as other:  # such as one of the device, which may be what ends the run
            logger.warning(
                "gradexplode: the step that an exception has interrupted could not be read: %s", describe(other)
            )
        components = self._components
        self._after.evaluate_held()
        components.reporter.publish(components.responses.attempts)
        components.reporter.write_steps(components.evidence.evidence(components.responses.attempts), self.diagnosis())

    def _finish_interrupted(self, error: BaseException) -> None:
        is_alone = self._components.exchange.world.size == 1
        if is_alone:
            self._deferred_reading.read()
            self._deferred_reading.settle()
        self._components.calm_steps.close()
        if self._open is not None:
            if self._open.phase is Phase.MEASURED and not is_alone:
                self._open.phase = Phase.DECIDED  # which may need the other processes
            self._close(self._open)
        steps, self._stepped = self._stepped, []
        if is_alone:
            for step in steps:
                if step.phase is Phase.COLLECTING:
                    self._deferred_reading.resolve(step)
                    self._deferred_reading.act(step)
            self._after.freeze([step for step in steps if step.phase is not Phase.COLLECTING])
            if not steps:
                has_no_loss = self._in_batch and not self._has_loss
                self._interrupted.record(error, self._measurement.batch_idx, has_no_loss)
        else:
            self._deferred_reading.keep_arrived(steps)

    # The end.

    def close(self) -> None:
        """Undo all changes to the training loop and its optimizers. Never raises."""
        self._shutdown.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later decisions depend on, in plain values, with a version."""
        self._after.evaluate_held()
        return self._components.state_dict()
