"""One optimizer step, from its gradients to its record's publication: what is measured of it, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_gradexplode.engine.accumulation import AccumulatedReading
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.measure import step as measure
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.sample import WeightSample
from lightning_gradexplode.measure.weights import WeightCopy
from lightning_gradexplode.records import Finding, StepRecord


@dataclass(slots=True, eq=False)
class Step:
    """An optimizer step on its way.

    Args:
        watch: The optimizer.
        parameters: Its parameters.
        record: What is known of the step so far.
        scalars_due: Whether the step's scalars are logged.
        histograms_due: Whether its histograms are logged.
        scale: What the gradients in memory are multiplied by.
        held_back: Whether the update will not happen.
        is_exact: Whether the gradients' norms were measured to 1e-6, and not only as torch clips by them.
        evaluations: How often gradients were computed within the step.
        reading: What is read of its gradients, as long as it is not waited for.
        came_late: Whether the optimizer had stepped before that was known.
        is_intact: Whether the gradients in memory are those that the optimizer was handed.
    """

    watch: OptimizerState
    parameters: ParameterSet
    record: StepRecord
    scalars_due: bool
    histograms_due: bool
    scale: float = 1.0
    is_exact: bool = True
    held_back: bool = False
    evaluations: int = 1
    reading: AccumulatedReading | None = None
    came_late: bool = False
    is_intact: bool = True
    _weights_before: WeightCopy | WeightSample | None = None
    _has_details: bool = False

    def note(self, findings: Sequence[Finding]) -> None:
        """Bring the severity of findings into the record."""
        worst = max((int(finding.severity) for finding in findings), default=0)
        if worst > self.record.severity:
            self.record = replace(self.record, severity=worst)

    def measure_start(self) -> None:
        """Measure the weights before the run's first step."""
        weights = measure.norms_of(self.parameters, self.parameters.tensors)
        self.record = measure.with_weights_before(self.record, self.parameters, weights)

    def measure_gradients(self, clips_by_value: bool) -> None:
        """Measure what a step that is logged, or clipped by value, needs besides the gradients' norms."""
        if not self.is_intact:
            return
        if self.scalars_due and not self._has_details:
            self._has_details = True
            if not self.is_exact:
                norms = measure.norms_of(self.parameters, self.parameters.gradients, self.scale)
                self.record = measure.with_gradient_norms(self.record, norms)
            self.record = measure.with_details(self.record, self.parameters, self.scale)
        elif clips_by_value and self.record.grad_max is None:
            self.record = measure.with_maxima(self.record, self.parameters, self.scale)

    def measure_gradient_histograms(self) -> None:
        """Count the gradients into histograms, if they are due."""
        if self.histograms_due and self.is_intact:
            gradients = self.parameters.gradients
            self.record = measure.with_histograms(self.record, "gradient", self.parameters, gradients, self.scale)

    def copy_weights(self, sample: int | None) -> None:
        """Copy the weights before the update, or a sample of so many of them, if its size is to be logged."""
        if self.scalars_due:
            tensors = self.parameters.tensors
            self._weights_before = WeightCopy(tensors) if sample is None else WeightSample(tensors, sample)

    def land(self) -> AccumulatedReading:
        """Give what was read of the gradients, now that it is waited for, and note whether these are still there."""
        assert self.reading is not None
        reading, self.reading = self.reading, None
        self.came_late, self.is_intact = True, reading.gradients.holds(self.parameters)
        return reading

    def note_unclipped(self) -> None:
        """Note that nothing has clipped the gradients, if that is to be logged."""
        if self.scalars_due:
            self.record = measure.with_clipped_norm(self.record, None)

    @property
    def _wants_weights(self) -> bool:
        bank = self.watch.bank
        return bank.wants_weights if self.reading is None else bank.expects_weights

    def measure_after(self, may_be_clipped: bool) -> None:
        """Measure, right after the optimizer's step, the gradients if they are others now, and the weights.

        Args:
            may_be_clipped: Whether the gradients may have been changed since they were measured.
        """
        if self.held_back:
            return
        if self.scalars_due and self.evaluations == 1 and self.reading is None:
            clipped = measure.norms_of(self.parameters, self.parameters.gradients) if may_be_clipped else None
            self.record = measure.with_clipped_norm(self.record, clipped)
        if self._weights_before is not None:
            copy, self._weights_before = self._weights_before, None
            self.record = measure.with_weight_change(self.record, self.parameters, copy, self.histograms_due)
        elif self._wants_weights:
            weights = measure.norms_of(self.parameters, self.parameters.tensors)
            self.record = measure.with_weights(self.record, weights)
