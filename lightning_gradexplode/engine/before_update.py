"""A step before the optimizer's update: its gradients are measured and exchanged, then clip and response are decided.

On an accelerator, where nothing has to be decided before the update, the numbers are read after it, and `resolve` does
then what `decide` does here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.detect import NonFiniteGradient
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.device_exchange import DeviceExchange
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.measure.gradients import norms_of
from lightning_gradexplode.measure.norms import start_norms
from lightning_gradexplode.records import Finding, StepRecord


class BeforeUpdate:
    """What happens to a step before the update.

    Args:
        run: The components of the run.

    Attributes:
        exchange: Exchanges the numbers of steps on their devices.
        batch_idx: Index of the current batch.
        module_gradients_due: Whether error gradients of modules are measured in the current batch.
    """

    def __init__(self, run: Components) -> None:
        self._run = run
        self.exchange = DeviceExchange(run)
        self.batch_idx = 0
        self.module_gradients_due = False
        # The user's own loop may change the gradients between the backward pass and the step.
        self._may_be_clipped = not run.is_automatic or run.counts_end_of_backward

    def measure_early(self, state: OptimizerState) -> None:
        """Start to measure the gradients of an optimizer at the end of the backward pass.

        On the host, where nothing could run beside it, they are measured once the optimizer is about to get them
        instead, if they are the same then.
        """
        run, may_be_clipped = self._run, self._may_be_clipped
        if state.is_on_host and not may_be_clipped and run.loop.loss_scale()[0] is None:
            return
        number, parameters = run.loop.step, state.parameters()
        run.window.measure_early(
            state.optimizer, parameters, as_torch_does=not may_be_clipped and self._reuses_norm(state)
        )
        # On an accelerator the details would have to be waited for.
        if may_be_clipped and (parameters.on_host or state.changes_gradients):
            scalars_due, histograms_due = run.schedule.due(number)
            if scalars_due or self.module_gradients_due:
                histograms_due = histograms_due or self.module_gradients_due
                run.window.measure_details_early(state.optimizer, parameters, histograms_due)

    def collect(self, state: OptimizerState) -> Step:
        """Begin a step: start the measurement of its gradients, unless they were measured early."""
        run, number = self._run, self._run.loop.step
        try:
            parameters = state.parameters()
            as_torch_does = state.policy is not None and self._reuses_norm(state)
            reading = run.window.close(state.optimizer, parameters, as_torch_does)
        except Exception:
            run.exchange.withdraw(packs_gradients=True)  # the other processes wait for this one
            raise
        step = Step(state, parameters, reading, number, *run.schedule.due(number))
        step.batch_idx, step.epoch, step.skipped_steps = self.batch_idx, run.loop.epoch, run.responses.skipped
        step.inputs = run.evidence.inputs_of_step()
        if self._may_be_clipped:
            step.gradients_intact = reading.gradients.holds(parameters)
            state.changes_gradients |= not step.gradients_intact
        if state.policy is None:
            step.clip_val, algorithm = run.loop.clip_setting
            step.clip_algorithm = None if step.clip_val is None else algorithm
        if run.is_distributed and not parameters.on_host:
            self.exchange.start(step, self.module_gradients_due)
        return step

    def can_wait(self, step: Step) -> bool:
        """Return whether an accelerator's numbers can be read after the update; the clip value is set in that case."""
        run = self._run
        if self.module_gradients_due or not run.deferred.is_possible:
            return False
        # The update of a step that is not calm is decided by what is found at it.
        if run.acts and (run.log.incidents.began is not None or not run.guard.accepts(step)):
            return False
        if step.state.policy is not None and not run.clipper.set_known_threshold(step):
            return False
        if run.deferred.accepts(step, run.clipper.changes_gradients(step)):
            return True
        run.clipper.forget_threshold(step)
        return False

    def start_update(self, step: Step) -> None:
        """Prepare the update of a step whose numbers are read later."""
        if step.state.policy is not None:
            self._run.clipper.clip_on_device(step)
        if self._run.acts:
            self._run.guard.arm(step)
        step.keep_weights(self._run.arguments.update_sample)

    def read(self, step: Step) -> bool:
        """Read the numbers of a step, and exchange them with the other processes.

        Returns:
            Whether any process has gradients.
        """
        run, exchange, reading, shards = self._run, self._run.exchange, step.reading, step.parameters.shards
        measures_modules = self.module_gradients_due
        if step.gathered is not None:
            has_gradients, measures_modules = self.exchange.read(step)
        else:
            try:
                local, own_loss = reading.gradients.norms(step.gradients_intact), reading.loss
                scale = None
                if reading.has_scale:
                    scale, step.scale = reading.scale, reading.scale_in_memory
            except Exception:
                exchange.withdraw(packs_gradients=True)
                raise
            has_gradients = reading.gradients.any
            step.loss, step.loss_scale = own_loss, scale
            if run.is_distributed:
                note = run.agreement.note(measures_modules)
                shared = exchange.exchange(own_loss, self.batch_idx, has_gradients, shards.packed_norms(local), note)
                measures_modules = run.agreement.receive(shared.notes, run.optimizers.states)
                local = local if shards.copies is None else shards.unpacked_norms(shared.packed)
                loss, has_gradients = shared.loss, shared.has_gradients
                step.batch_idx, step.rank, step.loss = loss.batch_idx, loss.rank, loss.value
            step.set_gradient_norms(local)
        step.phase = Phase.MEASURED
        if has_gradients and measures_modules:
            step.module_gradients = run.module_gradients.take()
            if run.is_automatic:
                run.module_gradients.detach()
        return has_gradients

    def prepare_update(self, step: Step) -> None:
        """Decide about a step, and prepare its update: clip the gradients, or remove them to hold it back.

        Where the user's own code may still replace gradients that are not finite, `hold_back` decides, by what the
        optimizer gets.
        """
        run, state = self._run, step.state
        is_finite = step.grad_norm is not None and math.isfinite(step.grad_norm)
        # A scaler leaves the update out.
        if not is_finite and run.may_change_gradients and state.has_hooks and not step.reading.has_scale:
            return
        self.decide(step)
        if state.policy is not None and step.skipped_by is None:
            self.clip(step, first=step.gradients_intact)
            run.clipper.remember(step)
        if step.skipped_by is None:
            step.keep_weights(run.arguments.update_sample)
        elif not state.has_hooks:
            drop_gradients(state.optimizer)

    def clip(self, step: Step, first: bool) -> None:
        """Clip the gradients of a step; the update is held back if some processes only have clipped them.

        Args:
            step: The step.
            first: As in `GradientClipper.clip`.
        """
        if not self._run.clipper.clip(step, first):
            self._run.responses.hold_back(step, "clip: the clip policy has failed on some processes only")

    def hold_back(self, step: Step) -> None:
        """Remove the gradients of an update that is held back, right before it."""
        if step.phase is Phase.MEASURED:
            now = norms_of(step.parameters, step.parameters.gradients, step.scale)
            if math.isfinite(now.total):  # cleaned since; else a clip by norm may have spread NaN to all gradients
                step.set_gradient_norms(now)
            self.decide(step)
            step.keep_weights(self._run.arguments.update_sample)
        elif self._run.acts and self._run.may_change_gradients and step.skipped_by is None:
            self._look_again(step)
        if step.skipped_by is not None:
            drop_gradients(step.state.optimizer)

    def _look_again(self, step: Step) -> None:
        """Respond to gradients that the user's own code has made NaN or infinite since they were measured."""
        run, gradients = self._run, step.parameters.gradients
        if step.phase is Phase.COLLECTING or step.evaluations > 1:
            return
        changed = not step.reading.gradients.holds(step.parameters)
        is_spoiled = changed and not math.isfinite(start_norms(gradients).norms().total)
        if run.is_distributed:
            is_spoiled = bool(run.exchange.agree(np.array([float(is_spoiled)])).any())
        if is_spoiled:
            step.set_gradient_norms(norms_of(step.parameters, gradients, step.scale))
            findings = step.state.detectors.look_again(step.record(), NonFiniteGradient.sign)
            self._add_findings(step, findings, before_update=True)
            run.responses.respond(step, findings, before_update=True)

    def measure_again(self, step: Step) -> None:
        """Replace the gradient norms of a step, and hold back its update if they are not finite any more."""
        step.measure_again()
        if self._run.acts and step.skipped_by is None:
            self._run.responses.respond(step, (), before_update=True)

    def decide(self, step: Step, before_update: bool = True) -> None:
        """Detect what a step's loss and gradients show, and decide clip value and response."""
        run, state = self._run, step.state
        algorithm = step.clip_algorithm if state.policy is None else state.policy.algorithm
        by_value = algorithm == "value"
        if step.found is None:
            if state.detectors.wants_start:
                step.measure_start()
            if step.scalars_due or by_value:
                step.measure_gradients(by_value)
        record = step.record()
        findings = self._findings(step, record, before_update, by_value)
        if step.histograms_due or self.module_gradients_due:  # a report compares with the run's first step
            step.measure_gradient_histograms()
        if algorithm is not None and step.found is None:
            self._set_clip_value(step, step.record() if findings else record)
        step.phase = Phase.DECIDED  # a response may raise
        if run.acts or findings:
            run.responses.respond(step, findings, before_update)

    def _findings(self, step: Step, record: StepRecord, before_update: bool, by_value: bool) -> Sequence[Finding]:
        """Detect what a step's loss and gradients show, and collect the evidence of it."""
        run = self._run
        shared_rank = None if record.rank is None else run.evidence.shared_rank(record)
        findings: Sequence[Finding]
        if step.found is not None:
            findings = run.agreement.counted(step.found[0])
        elif run.is_distributed:
            findings = run.find(step, record)
        else:
            detectors = step.state.detectors
            findings = detectors.begin(record)
            if detectors.failures:
                step.state.log_failures()
        if findings:
            try:
                self._add_findings(step, findings, before_update, by_value)
            except Exception:
                if shared_rank is not None:
                    run.exchange.withdraw_from_agreement(1)
                raise
        if shared_rank is not None:
            run.evidence.share(run.exchange, shared_rank)
        return findings

    def resolve(self, step: Step) -> bool:
        """Read the numbers of a step whose optimizer has stepped already, and detect what they show.

        Returns:
            Whether any process has gradients; else it is no step.
        """
        run = self._run
        step.decided_late = True
        step.gradients_intact = step.reading.gradients.holds(step.parameters)
        may_be_clipped = self._run.clipper.changes_gradients(step)
        step.state.changes_gradients |= not step.gradients_intact and not may_be_clipped
        if not self.read(step):
            return False
        is_finite = step.grad_norm is None or math.isfinite(step.grad_norm)
        if not is_finite and (step.is_guarded or step.is_left_out_unseen):
            step.update_taken = False
        if step.parameters.shards.copies is not None and step.update_taken:
            step.measure_weights()  # a collective, for which no process may wait whose detectors have failed
        step.measure_gradients(clips_by_value=False)
        record = step.record()
        before = run.find(step, record)
        if before and run.deferred.waits_for_effects and step.parameters.shards.copies is None:  # else a collective
            step.scalars_due = True  # once something follows from it, the gradients are others
            step.measure_gradients(clips_by_value=False)
        self._set_clip_value(step, record)
        if step.scalars_due and not may_be_clipped:
            step.set_unclipped()
        step.found = before, run.find(step, step.record(), is_over=True)
        return True

    def act(self, step: Step) -> None:
        """Log and respond to what was found before the update of a step that is resolved."""
        self.decide(step, before_update=step.is_guarded and not step.update_taken)

    def _set_clip_value(self, step: Step, record: StepRecord) -> None:
        """Determine the clip value of a step, and the share of recent steps that were clipped."""
        if step.state.policy is not None:
            self._run.clipper.set_threshold(step, record)
        if step.clip_algorithm is not None:
            self._run.clipper.set_clip_rate(step)

    def _add_findings(
        self, step: Step, findings: Sequence[Finding], before_update: bool, by_value: bool = False
    ) -> None:
        run = self._run
        new = run.add_findings(step, findings)
        step.measure_gradients(by_value)  # after a finding everything is due
        run.evidence.add(step, new, run.log.incidents.began, before_update)

    def _reuses_norm(self, state: OptimizerState) -> bool:
        """Return whether to measure by torch's own kernel: the loop will clip by its norm, and nothing is logged."""
        run = self._run
        if run.arguments.clip is None or not run.clipper.expects_norm_clipping(state):
            return False
        scalars_due, _ = run.schedule.due(run.loop.step)
        return not scalars_due and not run.deferred.expects(state.parameters())
