"""Steps whose numbers are read after their update: read, detected, and finished once that can have consequences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.decisions import Decisions
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.respond import ExplosionError


class DeferredReading:
    """Completes the phases of steps that `DeferredSteps` holds: reading, detection, responses and logging.

    Args:
        components: The components of the run.
        measurement: Measures the gradients of a step.
        decisions: What is decided about it before the update of a step that is not deferred.
        after: What happens to it after the update.
    """

    def __init__(
        self, components: Components, measurement: GradientMeasurement, decisions: Decisions, after: AfterUpdate
    ) -> None:
        self._components = components
        self._measurement = measurement
        self._decisions = decisions
        self._after = after

    def can_wait(self, step: Step) -> bool:
        """Return whether an accelerator's numbers can be read after the update; the clip value is set in that case."""
        components = self._components
        if self._measurement.module_gradients_due or not components.deferred.is_possible:
            return False
        # The update of a step that is not calm is decided by what is found at it.
        if components.acts and (components.log.incidents.began is not None or not components.guard.accepts(step)):
            return False
        if step.state.policy is not None and not components.clipper.set_known_threshold(step):
            return False
        if components.deferred.accepts(step, components.clipper.changes_gradients(step)):
            return True
        components.clipper.forget_threshold(step)
        return False

    def start_update(self, step: Step) -> None:
        """Prepare the update of a step whose numbers are read later."""
        if step.state.policy is not None:
            self._components.clipper.clip_on_device(step)
        if self._components.acts:
            self._components.guard.arm(step)
        step.keep_weights(self._components.arguments.update_sample)

    def read(self) -> None:
        """Read and detect the steps whose numbers were deferred; those of before are agreed on by that."""
        deferred = self._components.deferred
        for steps in deferred.take():
            steps = [step for step in steps if step.phase is not Phase.COLLECTING or self.resolve(step)]
            if self._components.agreement.by_notes:
                self.settle()
            if deferred.has_to_wait(steps):
                deferred.hold(steps)
            else:
                self._finish(steps)

    def settle(self) -> None:
        """Finish the steps whose numbers are read, with all consequences."""
        for steps in self._components.deferred.take_detected():
            self._finish(steps)

    def finish(self, has_effects: bool = True) -> None:
        """Read, detect and finish all steps; a collective call where the processes agree in the next exchange.

        Args:
            has_effects: Whether what was found has consequences now; else the steps are held on.
        """
        agreement = self._components.agreement
        try:
            self.read()
        except Exception:
            agreement.withdraw_notes()  # the other processes wait for this one
            raise
        agreement.exchange_notes(self._components.optimizers.states)
        if has_effects:
            self.settle()

    def keep(self) -> None:
        """Keep the steps whose numbers are read, and what was found in them, without any other consequence."""
        for steps in self._components.deferred.take_detected():
            for step in steps:
                for found in step.deferred_findings or ():
                    self._components.log.add(found)
                    step.add_findings(found)
            self._after.freeze(steps)

    def keep_arrived(self, stepped: Sequence[Step]) -> None:
        """Do the same with all steps whose numbers have arrived, in a process whose others may have ended.

        Args:
            stepped: The steps of the current batch.
        """
        for steps in [*self._components.deferred.take(), stepped]:
            known = [step for step in steps if step.phase is not Phase.COLLECTING or self._resolve_arrived(step)]
            self._components.deferred.hold(known)
        self.keep()

    def resolve(self, step: Step) -> bool:
        """Read the numbers of a step whose optimizer has stepped already, and detect what they show.

        Returns:
            Whether any process has gradients; else it is no step.
        """
        components = self._components
        step.decided_late = True
        step.gradients_intact = step.reading.gradients.holds(step.parameters)
        may_be_clipped = components.clipper.changes_gradients(step)
        step.state.changes_gradients |= not step.gradients_intact and not may_be_clipped
        if not self._measurement.read(step):
            return False
        self._set_update_taken(step)
        if step.parameters.shards.copies is not None and step.update_taken:
            step.measure_weights()  # a collective, for which no process may wait whose detectors have failed
        step.measure_gradients(clips_by_value=False)
        record = step.record()
        before = components.find(step, record)
        if (
            before and components.deferred.waits_for_effects and step.parameters.shards.copies is None
        ):  # else a collective
            step.scalars_due = True  # once something follows from it, the gradients are others
            step.measure_gradients(clips_by_value=False)
        self._decisions.set_clip_value(step, record)
        if step.scalars_due and not may_be_clipped:
            step.set_unclipped()
        step.deferred_findings = before, components.find(step, step.record(), is_over=True)
        return True

    def _resolve_arrived(self, step: Step) -> bool:
        """Read the numbers of a step without a collective, and detect what they show where that needs none either."""
        components = self._components
        step.decided_late, step.gradients_intact = True, False
        if not self._measurement.exchange.read_arrived(step):
            return False
        self._set_update_taken(step)
        is_detected = not components.agreement.is_needed(step)
        before = components.find(step, step.record()) if is_detected else ()
        self._decisions.set_clip_value(step, step.record())
        step.deferred_findings = before, components.find(step, step.record(), is_over=True) if is_detected else ()
        return True

    def _set_update_taken(self, step: Step) -> None:
        is_finite = step.grad_norm is None or math.isfinite(step.grad_norm)
        if not is_finite and (step.is_guarded or step.is_left_out_unseen):
            step.update_taken = False

    def act(self, step: Step) -> None:
        """Log and respond to what was found before the update of a step that is resolved."""
        self._decisions.decide(step, before_update=step.is_guarded and not step.update_taken)

    def _finish(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                if step.deferred_findings is not None:
                    self.act(step)
        except ExplosionError:
            self._after.freeze(steps)
            raise
        self._after.finish(steps)
