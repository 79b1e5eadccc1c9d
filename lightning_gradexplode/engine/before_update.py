"""A step before the optimizer's update: its gradients are measured and exchanged, then clip and response are decided.

On an accelerator, where nothing has to be decided before the update, the numbers are read after it, and `resolve` does
then what `decide` does here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.detect import NonFiniteGradient
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Phase, Step
from lightning_gradexplode.measure.gradients import GradientReading, norms_of
from lightning_gradexplode.measure.norms import start_norms
from lightning_gradexplode.measure.reading import PendingRead
from lightning_gradexplode.records import Finding, StepRecord


class BeforeUpdate:
    """What happens to a step before the update.

    Args:
        run: The components of the run.

    Attributes:
        batch_idx: Index of the current batch.
        module_gradients_due: Whether error gradients of modules are measured in the current batch.
    """

    def __init__(self, run: Components) -> None:
        self._run = run
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
        number, parameters = run.loop.step, run.optimizers.parameters(state)
        run.window.measure_early(
            state.optimizer, parameters, as_torch_does=not may_be_clipped and self._reuses_norm(state)
        )
        is_due = run.schedule.scalars_due(number) or self.module_gradients_due
        # On an accelerator the details would have to be waited for.
        if may_be_clipped and is_due and (parameters.on_host or state.changes_gradients):
            histograms_due = run.schedule.histograms_due(number) or self.module_gradients_due
            run.window.measure_details_early(state.optimizer, parameters, histograms_due)

    def collect(self, state: OptimizerState) -> Step:
        """Begin a step: start the measurement of its gradients, unless they were measured early."""
        run, number = self._run, self._run.loop.step
        try:
            parameters = run.optimizers.parameters(state)
            as_torch_does = state.policy is not None and self._reuses_norm(state)
            reading = run.window.close(state.optimizer, parameters, as_torch_does)
        except Exception:
            run.exchange.withdraw(packs_gradients=True)  # the other processes wait for this one
            raise
        step = Step(
            state,
            parameters,
            reading,
            run.schedule.scalars_due(number),
            run.schedule.histograms_due(number),
            step=number,
            batch_idx=self.batch_idx,
            epoch=run.loop.epoch,
            optimizer=state.index,
            scale_adapts=reading.scale_adapts,
            skipped_steps=run.responses.skipped,
            learning_rate=state.learning_rate,
            micro_batches=reading.micro_batches,
            backward_passes=reading.backward_passes,
            update_taken=False,
        )
        step.inputs = run.evidence.inputs
        if self._may_be_clipped:
            step.gradients_intact = reading.gradients.holds(parameters)
            state.changes_gradients |= not step.gradients_intact
        if state.policy is None:
            run.clipper.set_threshold(step, EMPTY)
        if run.exchange.world.size > 1 and not parameters.on_host:
            self._start_exchange(step)
        return step

    def _start_exchange(self, step: Step) -> None:
        """Exchange the numbers of a step on their device, and start their transfer to the host together."""
        exchange, reading, shards = self._run.exchange, step.reading, step.parameters.shards
        try:
            device = exchange.world.device
            each = torch.zeros(0, dtype=torch.float64, device=device)
            if shards.copies is not None:
                each = reading.gradients.norms_on_device(device)
            loss, has_gradients = reading.device_loss, reading.gradients.any
        except Exception:
            exchange.withdraw(packs_gradients=True)
            raise
        gathered = exchange.start(loss, self.batch_idx, has_gradients, each)
        if len(each):
            step.gathered_norms = gathered.view(exchange.world.size, -1)[:, -len(each) :]
        started = reading.gradients.start([gathered])
        step.gathered = reading.gradients if started else PendingRead([gathered])

    def can_wait(self, step: Step) -> bool:
        """Return whether the numbers of a step can be read after its update; its clip value is set in that case."""
        run = self._run
        if step.parameters.on_host or self.module_gradients_due or not run.deferred.is_possible:
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
        exchange, reading, shards = self._run.exchange, step.reading, step.parameters.shards
        if step.gathered is not None:
            has_gradients = self._read_gathered(step, step.gathered)
        else:
            try:
                local, own_loss = reading.gradients.finish(step.gradients_intact), reading.loss
                scale = None
                if reading.has_scale:
                    scale, step.scale = reading.scale, reading.scale_in_memory
            except Exception:
                exchange.withdraw(packs_gradients=True)
                raise
            has_gradients = reading.gradients.any
            if exchange.world.size > 1:
                loss, has_gradients, gathered = exchange.exchange(
                    own_loss, self.batch_idx, has_gradients, shards.packed_norms(local)
                )
                local = local if shards.copies is None else shards.unpacked_norms(gathered)
                step.set(batch_idx=loss.batch_idx, rank=loss.rank, loss=loss.value, loss_scale=scale)
            else:
                step.set(loss=own_loss, loss_scale=scale)
            step.set_gradient_norms(local)
        step.phase = Phase.MEASURED
        if has_gradients and self.module_gradients_due:
            step.set(module_gradients=self._run.module_gradients.take())
            if self._run.is_automatic:
                self._run.module_gradients.detach()
        return has_gradients

    def _read_gathered(self, step: Step, pending: GradientReading | PendingRead) -> bool:
        """Read the numbers of a step that the processes have exchanged on their devices.

        Returns:
            Whether any process has gradients.
        """
        exchange, reading, shards = self._run.exchange, step.reading, step.parameters.shards
        values = pending.values() if isinstance(pending, PendingRead) else pending.more
        loss, has_gradients, gathered = exchange.finish(values, step.batch_idx)
        step.set(batch_idx=loss.batch_idx, rank=loss.rank, loss=loss.value, loss_scale=reading.scale)
        step.scale = reading.scale_in_memory
        norms = None if shards.copies is None else shards.finite_norms(gathered)
        if norms is None:  # elements that are not finite are counted, by all processes together
            norms = shards.norms(reading.gradients.finish(step.gradients_intact))
        step.set_gradient_norms(norms)
        return has_gradients

    def may_be_cleaned(self, step: Step) -> bool:
        """Return whether the user's own code may still replace gradients that are not finite."""
        run = self._run
        norm = step.grad_norm
        if norm is not None and math.isfinite(norm):
            return False
        can_wait = step.state.has_hooks and not step.reading.has_scale  # a scaler leaves it out
        return can_wait and run.may_change_gradients

    def prepare_update(self, step: Step) -> None:
        """Decide about a step, and prepare its update: clip the gradients, or remove them to hold it back."""
        run, state = self._run, step.state
        self.decide(step)
        if state.policy is not None and not step.is_skipped:
            self.clip(step, first=step.gradients_intact)
            run.clipper.remember(step)
        if not step.is_skipped:
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
        elif self._run.acts and self._run.may_change_gradients and not step.is_skipped:
            self._look_again(step)
        if step.is_skipped:
            drop_gradients(step.state.optimizer)

    def _look_again(self, step: Step) -> None:
        """Respond to gradients that the user's own code has made NaN or infinite since they were measured."""
        run, gradients = self._run, step.parameters.gradients
        if step.phase is Phase.COLLECTING or step.evaluations > 1:
            return
        changed = not step.reading.gradients.holds(step.parameters)
        is_spoiled = changed and not math.isfinite(start_norms(gradients).norms().total)
        if run.exchange.world.size > 1:
            is_spoiled = bool(run.exchange.agree(np.array([float(is_spoiled)])).any())
        if is_spoiled:
            step.set_gradient_norms(norms_of(step.parameters, gradients, step.scale))
            findings = step.state.detectors.look_again(step.record(), NonFiniteGradient.sign)
            self._add_findings(step, findings, before_update=True)
            run.responses.respond(step, findings, before_update=True)

    def measure_again(self, step: Step) -> None:
        """Replace the gradient norms of a step, and hold back its update if they are not finite any more."""
        step.measure_again()
        if self._run.acts and not step.is_skipped:
            self._run.responses.respond(step, (), before_update=True)

    def decide(self, step: Step, before_update: bool = True) -> None:
        """Detect what a step's loss and gradients show, and decide clip value and response."""
        findings = self._detect(step, before_update)
        step.phase = Phase.DECIDED  # a response may raise
        if self._run.acts or findings:
            self._run.responses.respond(step, findings, before_update)

    def resolve(self, step: Step) -> bool:
        """Read and decide a step whose optimizer has stepped already.

        Returns:
            Whether any process has gradients; else it is no step.
        """
        step.decided_late = True
        step.gradients_intact = step.reading.gradients.holds(step.parameters)
        may_be_clipped = self._run.clipper.changes_gradients(step)
        step.state.changes_gradients |= not step.gradients_intact and not may_be_clipped
        if not self.read(step):
            return False
        held_back = step.is_guarded and step.grad_norm is not None and not math.isfinite(step.grad_norm)
        if held_back:
            step.set(update_taken=False)
        self.decide(step, before_update=held_back)
        if step.scalars_due and not may_be_clipped:
            step.set_unclipped()
        if step.parameters.shards.copies is not None and step.is_updated:
            step.measure_weights()  # a collective, for which no process may wait that has failed before the exchange
        return True

    def _detect(self, step: Step, before_update: bool) -> Sequence[Finding]:
        """Detect what a step's loss and gradients show, and determine its clip value."""
        run, state, detectors = self._run, step.state, step.state.detectors
        algorithm = step.clip_algorithm if state.policy is None else state.policy.algorithm
        by_value = algorithm == "value"
        if detectors.wants_start:
            step.measure_start()
        step.measure_gradients(by_value)
        record = step.record()
        rank = run.evidence.shared_rank(record)
        if run.agreement.is_needed(step):
            findings = run.agreement.findings(lambda: detectors.begin(record), detectors)
        else:
            findings = detectors.begin(record)
        if detectors.failures:
            state.log_failures()
        if findings:
            try:
                self._add_findings(step, findings, before_update, by_value)
            except Exception:
                if rank is not None:
                    run.exchange.withdraw_from_agreement(1)
                raise
        if rank is not None:
            run.evidence.share(run.exchange, rank)
        if step.histograms_due or self.module_gradients_due:  # a report compares with the run's first step
            step.measure_gradient_histograms()
        if state.policy is not None:
            run.clipper.set_threshold(step, step.record() if findings else record)
        if algorithm is not None:
            run.clipper.set_clip_rate(step)
        return findings

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
        return not run.schedule.scalars_due(run.loop.step) and not run.deferred.expects(
            run.optimizers.parameters(state)
        )


EMPTY = StepRecord(step=-1)
