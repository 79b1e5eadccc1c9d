"""A step after the optimizer's update: measurement of the weights, and the record of the step."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.scaled_clipping import ScaledClipping
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import StepRecord, combine
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.step_record import MAX_LOGGED
from lightning_gradexplode.records.text import describe

_scalars_due = operator.attrgetter("scalars_due")


class AfterUpdate:
    """Measures, records and logs a step after the update.

    Args:
        components: The components of the run.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._last: StepRecord | None = None
        self._ended: list[StepRecord] = []
        self._scaled_clipping = ScaledClipping(components.loop)

    @property
    def last(self) -> StepRecord | None:
        """The record of the last finished step; calm steps are finished once they are evaluated."""
        return self._components.calm_steps.last or self._last

    def measure(self, step: Step) -> None:
        """Measure what the update of a step has changed."""
        components = self._components
        step.state.steps += 1
        components.window.passes.stepped(step.parameters)
        if step.skipped_by is not None:
            return
        if step.grad_norm is not None and not math.isfinite(step.grad_norm) and step.is_left_out_unseen:
            return
        if step.scalars_due:
            changed = not step.gradients_intact or components.may_change_gradients
            step.measure_clipped(changed or components.clipper.changes_gradients(step))
        step.measure_weights()
        step.update_taken = True
        components.evidence.replays.updated(step.number)
        if step.phase is not Phase.COLLECTING:
            step.phase = Phase.STEPPED

    def set_logged_scalars(self, steps: Sequence[Step]) -> None:
        """Set the scalars that the user's module logged in this batch; they are read at once."""
        try:
            values = dict(islice(self._components.loop.logged_scalars().items(), MAX_LOGGED))
            tensors = [value for value in values.values() if isinstance(value, Tensor)]
            numbers = iter(read(tensors).tolist() if tensors else ())
            logged = {
                name: next(numbers) if isinstance(value, Tensor) else float(value) for name, value in values.items()
            }
        except Exception as error:
            logger.debug("gradexplode: the logged scalars of a batch could not be read: %s", describe(error))
            return
        for step in steps:
            step.set(logged=MappingProxyType(logged))

    def set_returned_loss(self, steps: Sequence[Step], outputs: Any, otherwise: float | None) -> None:
        """Set the loss of each optimizer's last step of a batch to what ``training_step`` returned.

        Args:
            steps: The steps of the batch.
            outputs: What it returned.
            otherwise: The loss if it returned none, None if that is not known.
        """
        components = self._components
        tensor = components.loop.returned_loss(outputs)
        value = otherwise if tensor is None else float(read([tensor])[0])
        loss = components.exchange.exchange(value, components.batch.index, False, np.zeros(0), ends_batch=True).loss
        for step in {step.state.index: step for step in steps}.values():
            step.set(loss=loss.value, batch_idx=loss.batch_idx, rank=loss.rank)

    def finish(self, steps: Sequence[Step]) -> None:
        """Detect what the steps of a batch have changed, respond, freeze their records, and log them together."""
        components, records = self._components, []
        for step in steps:
            record = step.record()
            if step.deferred_findings is not None:
                findings = components.agreement.counted(step.deferred_findings[1])
            else:
                findings = components.find(step, record, is_over=True)
            if findings:
                new = components.add_findings(step, findings)
                components.evidence.add(step.record(), step.inputs, new, before_update=False)
                if step.skipped_by is None:  # else the responses have acted on this step
                    components.responses.respond(step, findings, before_update=False)
                record = step.record()
            records.append(record)
        self._ended += self._freeze(steps, records)

    def evaluate_held(self) -> None:
        """Evaluate the calm steps that are held, and record their findings."""
        components = self._components
        findings, last = components.calm_steps.evaluate(), components.calm_steps.last
        if findings and last is not None:
            new = components.keep_findings(last.step, findings)
            components.evidence.add(last, None, new, before_update=False)

    def end_calm(self) -> None:
        """Evaluate the calm steps of a batch, so that the responses can be called at its end."""
        self.evaluate_held()
        self._ended += self._components.calm_steps.take_ended()

    def end_batch(self, is_deferred: bool = False) -> None:
        """Call the responses at the end of a batch, when no backward pass is running, and publish the report.

        Args:
            is_deferred: Whether the numbers of its step are not read yet.
        """
        components = self._components
        records, self._ended = self._ended, []
        if components.acts:
            components.responses.batch_ended(records, is_deferred)
        incidents = components.log.incidents
        if records and (incidents.began is None or not incidents.is_critical):
            components.responses.check_buffers(records[-1].step)
        if components.log.critical:
            components.reporter.publish(components.responses.attempts)
        if components.evidence.graphs.has_found:
            components.evidence.graphs.has_found = False
            components.reporter.publish_cause(components.responses.attempts)

    def freeze(self, steps: Sequence[Step]) -> None:
        """Make the records of the steps of a batch without further detection; keep and log them."""
        self._freeze(steps, [step.record() for step in steps])

    def _freeze(self, steps: Sequence[Step], found: Sequence[StepRecord]) -> list[StepRecord]:
        """Keep and log the records of the steps of a batch."""
        if not steps:
            return []
        components = self._components
        records = list(map(self._kept, steps, found))
        for record in records:
            self._scaled_clipping.look(record)
        batch = records[0] if len(records) == 1 else combine(records)
        metrics: dict[str, float] = {}
        if batch.grad_norm is not None:
            metrics["gradexplode/grad_norm"] = batch.grad_norm
        if batch.update_ratio is not None:
            metrics["gradexplode/update_ratio"] = batch.update_ratio
        components.loop.publish_metrics({**metrics, "gradexplode/severity": float(batch.severity)})
        if any(map(_scalars_due, steps)) and components.schedule.logs_scalars(batch.step):
            logged = [
                components.responses.with_scalars(one, step.state) for one, step in zip(records, steps, strict=True)
            ]
            components.loggers.log_batch(
                logged, [step.parameters.shown for step in steps], components.arguments.per_parameter
            )
        if components.log.incidents.began is not None and components.log.incidents.ends(batch.step):
            components.responses.incident_ended()
        return records

    def _kept(self, step: Step, record: StepRecord) -> StepRecord:
        """Keep a record, and return it as it is logged."""
        components = self._components
        step.phase, step.inputs = Phase.FINISHED, None
        if record.histograms or record.module_gradients is not None:
            components.reporter.observe(record)
        if record.histograms and not (step.histograms_due and components.schedule.logs_histograms(record.step)):
            record = replace(record, histograms={})
        self._last, components.calm_steps.last = record, None
        step.state.recorder.add(record)
        if record.nonfinite_weights is not None:
            components.evidence.weights_are_finite = record.nonfinite_weights == 0
        return record
