"""The evidence of incidents: facts about the run, the batch and, from a replay, the operations of the step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.diagnose.causes.own_targets import names_of_copy
from lightning_gradexplode.diagnose.outcomes import with_outcomes
from lightning_gradexplode.diagnose.repeated_weights import weights_to_try
from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.engine.accumulation import AccumulationWindow
from lightning_gradexplode.engine.batch_evidence import BatchEvidence
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.first_facts import first_facts
from lightning_gradexplode.engine.incidents import CALM_STEPS, IncidentTracker
from lightning_gradexplode.engine.latest_incident import LatestIncident, is_any_nonfinite
from lightning_gradexplode.engine.loss_graphs import LossGraphs
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.replays import IncidentReplays
from lightning_gradexplode.engine.shared_evidence import SharedEvidence
from lightning_gradexplode.engine.step_inputs import StepInputKeeper, StepInputs
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.run_facts import frozen_parameters, in_order, unchanged_weights
from lightning_gradexplode.measure.update_fault import find_update_fault
from lightning_gradexplode.records import (
    Attempt,
    Evidence,
    Finding,
    History,
    Replay,
    RunFacts,
    Severity,
    StepRecord,
    UpdateFault,
)

LATER_STEPS = 20
"""Number of steps after an incident from which their loss shows whether the run has learned nevertheless."""


class EvidenceCollector:
    """Collects the evidence of a run's incidents.

    Args:
        loop: The training loop.
        arguments: The monitor's arguments.
        states: The optimizers.
        window: The gradients of the current step.
        incidents: The tracker of the run's incidents.

    Attributes:
        inputs: Keeps the inputs of the current step, with which it can be computed again.
        weights_are_finite: Whether the weights were finite when last measured.
        replays: The steps that are computed again.
        graphs: Facts from the graphs of losses.
        shared: The evidence that several processes share.
        raised: The exception that the latest step has raised because of its values, empty for none.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        arguments: Arguments,
        states: Sequence[OptimizerState],
        window: AccumulationWindow,
        incidents: IncidentTracker,
    ) -> None:
        self._loop = loop
        self._window = window
        self._incidents = incidents
        self._arguments = arguments
        self._states = states
        self._facts: RunFacts | None = None
        self._first_step: int | None = None
        self._batch = BatchEvidence(loop)
        self._batches = 0
        self.inputs = StepInputKeeper(loop, states)
        self.graphs = LossGraphs(loop, arguments.diagnose)
        self.replays = IncidentReplays(loop, states, arguments.diagnose, self.graphs, self.inputs)
        self._incident = LatestIncident()
        self.weights_are_finite = True
        self.raised = ""
        self.shared = SharedEvidence(self._batch, self.replays, self.graphs, arguments.diagnose)

    # Called at every step.

    def batch_started(self, batch: Any, batch_idx: int, due: bool) -> None:
        """Keep the inputs with which the step can be computed again.

        Args:
            batch: The batch.
            batch_idx: Its index in the epoch.
            due: Whether the usual ranges of batches are sampled, beyond those of the 1st, 2nd, 4th, 8th and so on.
        """
        if self._facts is None:
            self._first_step = self._loop.step
            self._facts = first_facts(self._loop, self._arguments, self._states, batch)
            self._batch.start(batch, batch_idx)
        self._batches += 1
        if due or self._batches & (self._batches - 1) == 0:  # the 1st, 2nd, 4th, 8th and so on
            self._batch.sample(batch)
        last_found = self._incident.now
        found = last_found >= 0
        in_incident = found and self._loop.step - last_found <= CALM_STEPS
        # The first update, by an optimizer without a state, is the most likely one to do harm.
        is_first = self._first_step is not None and self._first_step == self._loop.step
        if not is_first:
            self._first_step = None
        self.inputs.keep(
            batch,
            batch_idx,
            for_replay=self.replays.is_on,
            after_warning=found,
            with_weights=(is_first or in_incident) and self.replays.are_left,
        )

    # Called at a step with findings.

    def add(
        self,
        record: StepRecord,
        inputs: StepInputs | None,
        findings: Sequence[Finding],
        before_update: bool,
        replay: Replay | None = None,
    ) -> None:
        """Collect the evidence of a step with findings that are new to their incident.

        Args:
            record: The step.
            inputs: Its inputs, None if they are no longer known.
            findings: The new findings.
            before_update: Whether the optimizer has not stepped yet.
            replay: The step as it was computed again, if it was.
        """
        serious, onset = [one for one in findings if one.severity >= Severity.WARNING], self._incidents.began
        if not serious or onset is None:
            return
        is_new = onset != self._incident.onset
        if is_new:
            self._incident = LatestIncident(onset)
            self._batch.facts = None
            self.replays.forget()
        incident, was_critical = self._incident, self._incident.is_critical
        incident.add(record, serious)
        for state in self._states:
            state.recorder.incident_seen(is_new)
        critical = any(finding.severity is Severity.CRITICAL for finding in serious)
        nonfinite = is_any_nonfinite(serious)
        if nonfinite and incident.update_fault is None and (before_update or not record.nonfinite_count):
            incident.update_fault = self._find_update_fault(inputs, before_update)
        if critical and not was_critical:
            self.graphs.request()
        if inputs is None or incident.now != record.step:
            return  # they are not the inputs of an earlier, held step
        if not self._batch.is_shared and (self._batch.facts is None or (critical and not was_critical) or nonfinite):
            self._batch.collect(record.step, inputs, was_critical)
        if replay is not None:
            self.replays.replay = replace(replay, step=record.step)
            self._use_order()
        elif critical and self.replays.is_due:
            self._compute_again(record, inputs, before_update)

    def _find_update_fault(self, inputs: StepInputs | None, before_update: bool) -> UpdateFault | None:
        """Find the weight that became non-finite by this step's update, or before that update by an earlier one."""
        before = None if inputs is None or before_update else inputs.weights
        return collect_or_log(
            "the fault of the update",
            lambda: find_update_fault(
                self._loop.module,
                [state.optimizer for state in self._states],
                before,
                with_gradient=not before_update,
            ),
        )

    def _compute_again(self, record: StepRecord, inputs: StepInputs, before_update: bool) -> None:
        """Replay a step, and use the order of execution that it has shown."""
        facts = self._facts or RunFacts()
        rows = self._batch.outlier_rows
        self.replays.compute(
            record, inputs, before_update, rows, lambda replay: weights_to_try(facts, replay), facts.parameters
        )
        self._use_order()

    def _use_order(self) -> None:
        replay, facts = self.replays.replay, self._facts
        if replay is not None and replay.execution_order and facts is not None and not facts.order_is_executed:
            self._facts = in_order(facts, replay.execution_order)

    def share(self, exchange: StepExchange, record: StepRecord) -> None:
        """Share the evidence of a step between processes, see `SharedEvidence.share`; a collective."""
        if self.shared.share(exchange, record):
            self._use_order()

    # What is known.

    @property
    def has_incident(self) -> bool:
        """Whether there was a step with a finding of WARNING or above."""
        return self._incident.onset >= 0

    def histories(self) -> tuple[History, ...]:
        """Return the last steps of each optimizer, those after the latest incident included."""
        return tuple(state.recorder.history() for state in self._states)

    def histories_from_onset(self) -> tuple[History, ...]:
        """Return the last steps, and before them those around the beginning of the incident, if none is missing."""
        return tuple(state.recorder.from_onset() for state in self._states)

    def evidence(self, attempts: Sequence[Attempt] = ()) -> Evidence:
        """Return all that is known of the latest incident; of a run without one, its facts and history.

        Args:
            attempts: The actions of the responses.
        """
        histories, incident = self.histories(), self._incident
        onset, now, failed, first = incident.onset, incident.now, incident.failed_at, self.graphs.first
        return Evidence(
            step=onset,
            now=now,
            findings=tuple(incident.findings),
            run=self._facts or RunFacts(),
            history=histories if now < 0 else tuple(one.recorder.until(now) for one in self._states),
            first=tuple(state.recorder.first() for state in self._states),
            # Once a value is not finite, later losses show its consequences.
            batch=self.graphs.with_fields(self._batch.facts, onset, now if failed is None else failed),
            replay=self.graphs.completed(self.replays.replay, onset, onset - 1 if failed is None else failed),
            experiments=self.replays.experiments,
            attempts=with_outcomes([one for one in attempts if one.step >= onset or one.action == "clip"], histories),
            weights_are_finite=self.weights_are_finite,
            update_is_harmless=incident.update_is_harmless,
            later_loss=_later_loss(histories, now),
            update_fault=incident.update_fault,
            uncleared_evaluations=max((state.uncleared_evaluations for state in self._states), default=0),
            loss_divisors=first.divisors,
            later_loss_divisors=self.graphs.later_divisors(onset),
            input_growth=self.graphs.input_growth(onset),
            is_left_out=incident.is_left_out,
            applied=first.applied,
            first_losses=first.losses,
            own_functions=first.own_functions.found,
            summed=first.summed,
            compares_layer=first.compares_layer,
            inactive=first.inactive,
            of_one_element=first.of_one_element,
            frozen=frozen_parameters(self._loop.module),
            unchanged=self._unchanged(names_of_copy(self._facts)),
            raised=self.raised,
            loss_factor=self._loop.loss_factor,
            moves_weights=bool(self._loop.moves_weights),
            first_changes=tuple(self._window.first_changes),
        )

    def calm_evidence(self) -> Evidence:
        """Return all that is known of a run without an incident, with its data and the terms of its first loss."""
        step, evidence = self._loop.step, self.evidence()
        return replace(
            evidence,
            step=step,
            now=step,
            batch=self.graphs.with_fields(self._batch.usual(step), step, step),
            replay=evidence.replay or self.graphs.terms(),
            unchanged=self._unchanged({one.name for one in evidence.run.parameters if "16" in one.dtype}),
        )

    def _unchanged(self, names: Collection[str]) -> tuple[str, ...]:
        """Return which of some weights are those of the start of the run, as far as their sizes show it."""
        facts = self._facts
        if facts is None or not names:
            return ()
        return collect_or_log("the weights", lambda: unchanged_weights(self._loop.module, facts, names)) or ()


def _later_loss(histories: Sequence[History], step: int) -> float | None:
    """Return the median of the last losses, if there are at least 20 after a step; else None."""
    losses = [one.values["loss"][one.step > step] for one in histories if "loss" in one.values]
    later = np.concatenate(losses) if losses else np.zeros(0)
    later = later[np.isfinite(later)]
    return float(np.median(later[-LATER_STEPS:])) if len(later) >= LATER_STEPS else None
