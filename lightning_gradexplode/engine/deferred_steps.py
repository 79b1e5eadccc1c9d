"""Steps whose numbers are read after their update, so that no accelerator is waited for before it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.engine.agreement import Agreement
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.parameters import ParameterSet

BATCH_BYTES = 1 << 28
"""Bytes of a batch, 256 MiB, up to which it is held until the numbers of its step are there, for a replay."""


class DeferredSteps:
    """Holds the steps of a batch whose numbers are not read yet, until the next batch clears the gradients.

    By then an accelerator has the next forward pass to work on. A step can only be deferred where nothing has to be
    decided before its update: where clip values do not depend on the step, and a response that acts has found nothing
    lately (`DeviceGuard` holds back what is not finite meanwhile).

    What is decided here is the same on every process.

    Once the numbers of a step are read, and something was found in them that a response acts on, the step is held on
    until no graph of a forward pass exists that a response could destroy: until the next update, or the end of its
    batch. With several processes each step is held until the next exchange, which shows whether all detectors work.

    Args:
        loop: The training loop.
        acts: Whether a response may change the run.
        by_notes: Whether findings are agreed on in the next exchange.

    Attributes:
        is_possible: Whether any step of the run can be deferred.
        waits_for_effects: Whether what is found has no consequences at once.
        batches: The steps that are held, by batch, oldest first.
        detected: Those of which the numbers are read, but that had no consequences yet.
    """

    def __init__(self, loop: TrainingLoop, acts: bool, by_notes: bool) -> None:
        self.is_possible = loop.is_automatic
        self.waits_for_effects = acts or by_notes
        self._by_notes = by_notes
        self.batches: list[Sequence[Step]] = []
        self.detected: list[Sequence[Step]] = []

    def accepts(self, step: Step, may_be_clipped: bool) -> bool:
        """Return whether the numbers of a step can be read after its update.

        Args:
            step: The step.
            may_be_clipped: Whether the gradients may be changed by clipping, and their maxima and counts be lost.
        """
        return (
            self.is_possible
            and not step.parameters.on_host
            and (step.gathered is not None or not step.reading.gradients.is_there)
            and not step.state.detectors.needs_start
            and step.clip_algorithm != "value"  # whose clip rate is of the gradients before clipping
            and not (step.scalars_due and (may_be_clipped or step.reading.has_scale or step.state.changes_gradients))
            and not (step.scalars_due and step.parameters.shards.copies is not None)  # which exchanges more
        )

    def expects(self, parameters: ParameterSet) -> bool:
        """Return whether a step of these parameters that is not logged is likely to be deferred."""
        return self.is_possible and not parameters.on_host

    def add(self, steps: Sequence[Step]) -> None:
        """Hold the steps of a batch, and the batch itself if it is small enough to be held beside the next one."""
        for step in steps:
            if step.inputs is not None and step.inputs.batch.size > BATCH_BYTES:
                step.inputs = None
        self.batches.append(steps)

    def has_to_wait(self, steps: Sequence[Step]) -> bool:
        """Return whether the consequences of steps that are resolved have to wait."""
        found_any = any(found for step in steps for found in step.deferred_findings or ())
        return self._by_notes or (self.waits_for_effects and found_any)

    def hold(self, steps: Sequence[Step]) -> None:
        """Hold the steps of a batch, whose numbers are read, until what was found can have consequences."""
        for step in steps:
            step.gradients_intact = False  # they are those of a later step then
        self.detected.append(steps)

    def take(self) -> list[Sequence[Step]]:
        """Remove and return the steps whose numbers are not read, by batch, oldest first."""
        batches, self.batches = self.batches, []
        return batches

    def take_detected(self) -> list[Sequence[Step]]:
        """Remove and return the steps whose numbers are read, by batch, oldest first."""
        batches, self.detected = self.detected, []
        return batches

    def found_any(self, agreement: Agreement) -> bool:
        """Return whether something was found in steps that had no consequences yet, by detectors that still count."""
        held = (found for steps in self.detected for step in steps for found in step.deferred_findings or ())
        return any(agreement.counted(found) for found in held)
