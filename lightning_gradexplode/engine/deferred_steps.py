"""Steps whose numbers are read after their update, so that no accelerator is waited for before it.

Before the update of a step, its norms and its loss are still being computed on the device, and the host would wait for
them. Such a step is *deferred*. The following happens with it, in several files:

1. *It begins.* In a run of several processes, `engine/device_exchange.py` exchanges its numbers on the device.
2. *Its update is prepared without its numbers*, if `DeferredSteps.can_wait` allows it: where clip values do not depend
   on the step or are computed on its device (`engine/clipping.py`), and where a response that acts has found nothing
   lately. `engine/device_guard.py` holds back updates that are not finite on the device meanwhile.
3. *Its batch ends.* The step is held, still in phase *collecting*: it is *unread*.
4. *The next batch clears the gradients.* By then the accelerator has the next forward pass to work on. The numbers are
   read, and the detectors are called for the time before and after its update.
5. *What was found has consequences*: log entries, responses, the record of the step. If a response acts on something
   that was found, they wait until no graph of a forward pass exists that the response could destroy: until the next
   update, or the end of its batch. With several processes they wait for the next exchange, which shows whether all
   detectors work (`engine/agreement.py`). Meanwhile the step is *unsettled*.

What is decided here is the same on every process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.engine.after_update import AfterUpdate
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.decisions import Decisions
from lightning_gradexplode.engine.device_exchange import DeviceExchange
from lightning_gradexplode.engine.gradient_measurement import GradientMeasurement
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.respond import ExplosionError

BATCH_BYTES = 1 << 28
"""Bytes of a batch, 256 MiB, up to which it is held until the numbers of its step are there, for a replay."""


class DeferredSteps:
    """Holds deferred steps, and takes them through the phases that they have missed.

    Args:
        components: The components of the run.
        exchange: Exchanges the numbers of steps between processes on their devices.
        measurement: Measures the gradients of a step.
        decisions: What is decided about it before the update of a step that is not deferred.
        after: What happens to it after the update.

    Attributes:
        unread: The steps whose numbers are not read yet, by batch, oldest first.
        unsettled: The steps whose numbers are read, and that had no consequences yet, by batch, oldest first.
        graph_exists: Whether a backward pass is running, during which nothing may have consequences.
    """

    def __init__(
        self,
        components: Components,
        exchange: DeviceExchange,
        measurement: GradientMeasurement,
        decisions: Decisions,
        after: AfterUpdate,
    ) -> None:
        self.unread: list[Sequence[Step]] = []
        self.unsettled: list[Sequence[Step]] = []
        self.graph_exists = False
        self._components = components
        self._exchange = exchange
        self._measurement = measurement
        self._decisions = decisions
        self._after = after
        self._has_late_effects = components.acts or components.agreement.by_notes

    # Before the update.

    def can_wait(self, step: Step) -> bool:
        """Return whether the numbers of a step can be read after its update; the clip value is set in that case."""
        components = self._components
        if components.batch.measures_modules or not components.is_automatic:
            return False
        # The update of a step that is not calm is decided by what is found at it.
        is_calm = components.log.incidents.began is None
        if components.acts and not (is_calm and components.device_guard.accepts(step)):
            return False
        if step.state.policy is not None and not components.clipper.set_known_threshold(step):
            return False
        if self._are_numbers_kept(step):
            return True
        components.clipper.forget_threshold(step)
        return False

    def _are_numbers_kept(self, step: Step) -> bool:
        """Return whether all that is measured of a step can be read after its update, when gradients may be lost."""
        may_be_clipped = self._components.clipper.changes_gradients(step)
        is_sharded = step.parameters.shards.copies is not None  # which exchanges more at a step that is logged
        return (
            not step.parameters.on_host
            and (step.on_device.gathered is not None or not step.reading.gradients.is_there)
            and not step.state.detectors.needs_start
            and step.clip_algorithm != "value"  # whose clip rate is of the gradients before clipping
            and not (
                step.scalars_due
                and (may_be_clipped or step.reading.has_scale or step.state.changes_gradients or is_sharded)
            )
        )

    def start_update(self, step: Step) -> None:
        """Prepare the update of a step whose numbers are read later."""
        step.is_deferred = True
        if step.state.policy is not None:
            self._components.clipper.clip_on_device(step)
        if self._components.acts:
            self._components.device_guard.arm(step)
        step.keep_weights(self._components.arguments.update_sample)

    # From the end of the batch on.

    def hold(self, steps: Sequence[Step]) -> None:
        """Hold the steps of a batch, and the batch itself if it is small enough to be held beside the next one."""
        for step in steps:
            if step.inputs is not None and step.inputs.batch.size > BATCH_BYTES:
                step.inputs = None
        self.unread.append(steps)

    def read(self) -> None:
        """Read and detect the steps that are unread; the unsettled ones of before are agreed on by that."""
        batches, self.unread = self.unread, []
        for batch in batches:
            steps = [step for step in batch if step.phase is not Phase.COLLECTING or self.resolve(step)]
            if self._components.agreement.by_notes:
                self.settle()
            if self._has_to_wait(steps):
                self._hold_on(steps)
            else:
                self._finish(steps)

    def _has_to_wait(self, steps: Sequence[Step]) -> bool:
        """Return whether the consequences of steps that are resolved have to wait."""
        found_any = any(found for step in steps for found in step.deferred_findings or ())
        return self._components.agreement.by_notes or (self._has_late_effects and found_any)

    def _hold_on(self, steps: Sequence[Step]) -> None:
        """Hold the steps of a batch, whose numbers are read, until what was found can have consequences."""
        for step in steps:
            step.gradients_intact = False  # they are those of a later step then
        self.unsettled.append(steps)

    def resolve(self, step: Step) -> bool:
        """Read the numbers of a step whose optimizer has stepped already, and detect what they show.

        Returns:
            Whether any process has gradients; else it is no step.
        """
        components = self._components
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
        if before and self._has_late_effects and step.parameters.shards.copies is None:  # else a collective
            step.scalars_due = True  # once something follows from it, the gradients are others
            step.measure_gradients(clips_by_value=False)
        self._decisions.set_clip_value(step, record)
        if step.scalars_due and not may_be_clipped:
            step.set_unclipped()
        step.deferred_findings = before, components.find(step, step.record(), is_over=True)
        return True

    @staticmethod
    def _set_update_taken(step: Step) -> None:
        is_finite = step.grad_norm is None or math.isfinite(step.grad_norm)
        if not is_finite and (step.on_device.is_guarded or step.is_left_out_unseen):
            step.update_taken = False

    # Consequences.

    def settle(self) -> None:
        """Finish the unsettled steps, with all consequences."""
        for steps in self._take_unsettled():
            self._finish(steps)

    def settle_unless_too_early(self) -> None:
        """Do so, unless the processes agree in a later exchange, or a backward pass is running."""
        if not self._components.agreement.by_notes and not self.graph_exists:
            self.settle()

    def settle_by_exchange(self, step: Step) -> None:
        """Do so if the exchange of a new step shows that something that was found in them counts."""
        if step.on_device.gathered is not None and self.found_any:
            self._exchange.receive(step)
            if self.found_any:  # on all processes then
                self.settle()

    @property
    def found_any(self) -> bool:
        """Whether something was found in unsettled steps, by detectors that still count."""
        held = (found for steps in self.unsettled for step in steps for found in step.deferred_findings or ())
        return any(self._components.agreement.counted(found) for found in held)

    def finish(self, has_effects: bool = True) -> None:
        """Read, detect and finish all steps; a collective call where the processes agree in the next exchange.

        Args:
            has_effects: Whether what was found has consequences now; else the steps stay unsettled.
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

    def act(self, step: Step) -> None:
        """Log and respond to what was found before the update of a step that is resolved."""
        self._decisions.decide(step, before_update=step.on_device.is_guarded and not step.update_taken)

    def _finish(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                if step.deferred_findings is not None:
                    self.act(step)
        except ExplosionError:
            self._after.freeze(steps)
            raise
        self._after.finish(steps)

    def _take_unsettled(self) -> list[Sequence[Step]]:
        batches, self.unsettled = self.unsettled, []
        return batches

    # The end of a run that an exception or a failure ends.

    def keep(self) -> None:
        """Keep the unsettled steps, and what was found in them, without any other consequence."""
        for steps in self._take_unsettled():
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
        batches, self.unread = [*self.unread, stepped], []
        for steps in batches:
            self._hold_on([step for step in steps if step.phase is not Phase.COLLECTING or self._resolve_arrived(step)])
        self.keep()

    def _resolve_arrived(self, step: Step) -> bool:
        """Read the numbers of a step without a collective, and detect what they show where that needs none either."""
        components = self._components
        step.gradients_intact = False
        if not self._exchange.read_arrived(step):
            return False
        self._set_update_taken(step)
        is_detected = not components.agreement.is_needed(step)
        before = components.find(step, step.record()) if is_detected else ()
        self._decisions.set_clip_value(step, step.record())
        step.deferred_findings = before, components.find(step, step.record(), is_over=True) if is_detected else ()
        return True
