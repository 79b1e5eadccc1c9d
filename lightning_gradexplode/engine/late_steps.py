"""Steps whose numbers are read after their update: read, detected, and finished once that can have consequences."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.before_update import BeforeUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.respond import ExplosionError


class LateSteps:
    """Completes the phases of steps that `DeferredSteps` holds: reading, detection, responses and logging.

    Args:
        run: The components of the run.
        before: What happens to a step before the update.
        after: What happens to it after the update.
    """

    def __init__(self, run: Components, before: BeforeUpdate, after: AfterUpdate) -> None:
        self._run = run
        self._before = before
        self._after = after

    def read(self) -> None:
        """Read and detect the steps whose numbers were deferred; those of before are agreed on by that."""
        deferred = self._run.deferred
        for steps in deferred.take():
            steps = [step for step in steps if step.phase is not Phase.COLLECTING or self._before.resolve(step)]
            if self._run.agreement.by_notes:
                self.settle()
            if deferred.has_to_wait(steps):
                deferred.hold(steps)
            else:
                self._finish(steps)

    def settle(self) -> None:
        """Finish the steps whose numbers are read, with all consequences."""
        for steps in self._run.deferred.take_detected():
            self._finish(steps)

    def finish(self) -> None:
        """Read, detect and finish all steps; a collective call where the processes agree in the next exchange."""
        agreement = self._run.agreement
        try:
            self.read()
        except Exception:
            agreement.withdraw_notes()  # the other processes wait for this one
            raise
        agreement.exchange_notes(self._run.optimizers.states)
        self.settle()

    def keep(self) -> None:
        """Keep the steps whose numbers are read, and what was found in them, without any other consequence."""
        for steps in self._run.deferred.take_detected():
            for step in steps:
                for found in step.found or ():
                    self._run.log.add(found)
                    step.add_findings(found)
            self._after.freeze(steps)

    def _finish(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                if step.found is not None:
                    self._before.act(step)
        except ExplosionError:
            self._after.freeze(steps)
            raise
        self._after.finish(steps)
