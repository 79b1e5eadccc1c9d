"""A step whose loss and gradients show no rise, kept until it is recorded and evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from lightning_gradexplode.engine.accumulation import AccumulatedReading
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.measure.gradients import norms_of
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records import Finding, Norms, StepRecord


class CalmStep:
    """The measurements of a calm step.

    Args:
        state: The optimizer.
        parameters: Its parameters.
        reading: Its gradients and losses; None once the step is over, so that the gradients can be freed.
        loss: Its loss.
        norms: The norms of its gradients.
        number: The step that other metrics are logged at.
        batch_idx: Index of its batch.
        epoch: Index of its epoch.
        skipped_steps: Number of updates skipped before.

    Attributes:
        update_taken: Whether the optimizer has stepped.
        early_findings: The findings before the update, None if the detectors were not called.
        clip_val: The norm that its gradients are clipped to, None if they are not.
        clip_rate: The share of recent steps that were clipped.
        clips_directly: Whether the monitor itself clips the gradients, and not the training loop.
        needs_weights: Whether the weights are to be measured after the update.
    """

    __slots__ = (
        "_backward_passes",
        "_batch_idx",
        "_before",
        "_epoch",
        "_learning_rate",
        "_loss",
        "_micro_batches",
        "_skipped_steps",
        "_weights",
        "clip_rate",
        "clip_val",
        "clips_directly",
        "early_findings",
        "needs_weights",
        "norms",
        "number",
        "parameters",
        "reading",
        "state",
        "update_taken",
    )

    def __init__(
        self,
        state: OptimizerState,
        parameters: ParameterSet,
        reading: AccumulatedReading,
        loss: float,
        norms: Norms,
        number: int,
        batch_idx: int,
        epoch: int,
        skipped_steps: int,
    ) -> None:
        self.state, self.parameters, self.norms, self.number = state, parameters, norms, number
        self.reading: AccumulatedReading | None = reading
        self.update_taken, self.clips_directly = False, True
        self.early_findings: list[Finding] | None = None
        self.clip_val: float | None = None
        self.clip_rate: float | None = None
        self.needs_weights = state.detectors.needs_weights
        self._before: StepRecord | None = None
        self._weights: Norms | None = None
        self._loss, self._learning_rate = loss, state.learning_rate
        self._micro_batches, self._backward_passes = reading.micro_batches, reading.backward_passes
        self._batch_idx, self._epoch, self._skipped_steps = batch_idx, epoch, skipped_steps

    @property
    def holds_gradients(self) -> bool:
        """Whether the gradients are still those that were measured."""
        return self.reading is not None and self.reading.gradients.holds(self.parameters)

    def clip_to(self, value: float | None) -> None:
        """Set the clip value, and the share of recent steps that were clipped."""
        self.clip_val = value
        self.clip_rate = None if value is None else self.state.clip_rate(value, self.norms.total)

    def before_update(self) -> StepRecord:
        """Return the record of the step as it is known before clipping and update."""
        if self._before is None:
            self._before = self._record(None)
        return self._before

    def begin(self) -> list[Finding]:
        """Return the findings before the update. Called only where a response acts."""
        self.early_findings = self.state.detectors.check_before_update(self.before_update(), is_new=False)
        return self.early_findings

    def measure_weights(self) -> bool:
        """Measure the weights after the update, and return whether they have changed as little as usual."""
        weights = norms_of(self.parameters, self.parameters.tensors)
        self._weights = weights
        return self.state.detectors.weights_are_steady(weights.total)

    def evaluate(self) -> tuple[StepRecord, list[Finding]]:
        """Make the record of the step, add it to the history of its optimizer, and return it with its findings."""
        detectors, record = self.state.detectors, self._record(self._weights)
        is_measured_after = self._weights is not None
        findings = self.early_findings
        if findings is None:
            before = self.before_update() if is_measured_after else self._before or record
            findings = detectors.check_before_update(before, is_new=False)
        if self.state.policy is not None or is_measured_after:  # else nothing more is known after the update
            findings = [*findings, *detectors.check_after_update(record)]
        if findings:
            record = replace(record, severity=max(int(finding.severity) for finding in findings))
        self.state.recorder.add(record)
        return record, findings

    def _record(self, weights: Norms | None) -> StepRecord:
        norms, clip_val = self.norms, self.clip_val
        arrays = {"grad_norm": norms.each, "nonfinite_count": norms.nonfinite}
        if weights is not None:
            arrays["weight_norm"] = weights.each
        for array in arrays.values():
            array.setflags(write=False)
        return StepRecord(
            step=self.number,
            batch_idx=self._batch_idx,
            optimizer=self.state.index,
            parameters=self.parameters.names,
            loss=self._loss,
            grad_norm=norms.total,
            nonfinite_count=0,
            clip_val=clip_val,
            clip_algorithm=None if clip_val is None else "norm",
            clip_rate=self.clip_rate,
            weight_norm=None if weights is None else weights.total,
            nonfinite_weights=None if weights is None else 0,
            per_parameter=MappingProxyType({name: array.view() for name, array in arrays.items()}),
            skipped_steps=self._skipped_steps,
            update_taken=self.update_taken,
            learning_rate=self._learning_rate,
            epoch=self._epoch,
            micro_batches=self._micro_batches,
            backward_passes=self._backward_passes,
        )


class Preliminary(NamedTuple):
    """What was done of a step that is not a calm one, before that was known.

    Args:
        is_screened: Whether `DetectorSet.screen` was called for it.
        findings: The findings before its update, if the detectors were called already; else None.
        calm: The calm step that it began as, whose gradients are clipped already; None for other steps.
    """

    is_screened: bool = False
    findings: Sequence[Finding] | None = None
    calm: CalmStep | None = None


NOTHING_DONE = Preliminary()
"""Nothing was done."""

ONLY_SCREENED = Preliminary(is_screened=True)
"""Nothing else was done."""
