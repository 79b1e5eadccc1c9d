"""The gradients of a step: measured at the end of the backward pass or before the update, read, and exchanged."""

from __future__ import annotations

import numpy as np

from lightning_gradexplode.distributed.exchange import nan_unless_all_finite
from lightning_gradexplode.engine.calm_step import NOTHING_DONE, CalmStep, Preliminary
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.device_exchange import DeviceExchange
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.step import Phase, Step


class GradientMeasurement:
    """Begins a step with the measurement of its gradients, and reads their norms and the loss.

    Args:
        components: The components of the run.
        exchange: Exchanges the numbers of steps between processes on their devices.
    """

    def __init__(self, components: Components, exchange: DeviceExchange) -> None:
        self._components = components
        self._exchange = exchange
        self._may_be_clipped = components.loop.may_clip_by_itself

    def measure_early(self, state: OptimizerState) -> None:
        """Start to measure the gradients of an optimizer at the end of the backward pass.

        On the host, where the measurement cannot overlap with other work, they are measured right before the step
        instead, if they are the same then.
        """
        components, may_be_clipped = self._components, self._may_be_clipped
        if state.is_on_host and not may_be_clipped and components.loop.loss_scale()[0] is None:
            return
        number, parameters = components.loop.step, state.parameters()
        components.window.measure_early(
            state.optimizer, parameters, with_torch_kernel=not may_be_clipped and self._reuses_norm(state)
        )
        # On an accelerator the host would have to wait for the details.
        if may_be_clipped and (parameters.on_host or state.changes_gradients):
            scalars_due, histograms_due = components.schedule.due(number)
            if scalars_due or components.batch.measures_modules:
                histograms_due = histograms_due or components.batch.measures_modules
                components.window.measure_details_early(state.optimizer, parameters, histograms_due)

    def collect(self, state: OptimizerState) -> Step | None:
        """Begin a step: start the measurement of its gradients, unless they were measured early.

        Returns:
            The step; None for a calm one, which needs nothing else before its update.
        """
        components, number = self._components, self._components.loop.step
        due = scalars_due, histograms_due = components.schedule.due(number)
        try:
            parameters = state.parameters()
            with_torch_kernel = state.policy is not None and self._reuses_norm(state)
            reading = components.window.close(state.optimizer, parameters, with_torch_kernel)
        except Exception:
            components.exchange.withdraw(packs_gradients=True)  # the other processes wait for this one
            raise
        preliminary: Preliminary | None = NOTHING_DONE
        if not (scalars_due or histograms_due or components.batch.measures_modules):
            preliminary = components.calm_steps.begin(state, parameters, reading, number, components.batch.index)
        if preliminary is None:
            return None
        return self._begin(Step(state, parameters, reading, number, *due, preliminary))

    def collect_left_out(self, state: OptimizerState) -> Step:
        """Return a step whose gradients the training loop has cleared without an update, with its numbers."""
        parameters = state.parameters()
        reading = self._components.window.close(state.optimizer, parameters, with_torch_kernel=False, are_cleared=True)
        step = self._begin(Step(state, parameters, reading, self._components.loop.step, False, False))
        self.read(step)
        return step

    def reopen(self, calm: CalmStep) -> Step:
        """Begin a calm step again as any other, since its gradients have changed before its update."""
        assert calm.reading is not None
        due = self._components.schedule.due(calm.number)
        done = Preliminary(is_screened=True, findings=calm.early_findings, calm=calm)
        return self._begin(Step(calm.state, calm.parameters, calm.reading, calm.number, *due, done))

    def _begin(self, step: Step) -> Step:
        components, state, parameters, reading = self._components, step.state, step.parameters, step.reading
        skipped = components.responses.skipped
        step.set(batch_idx=components.batch.index, epoch=components.loop.epoch, skipped_steps=skipped)
        step.inputs = components.inputs.take_of_step()
        if self._may_be_clipped:
            step.gradients_intact = reading.gradients.holds(parameters)
            state.changes_gradients |= not step.gradients_intact
        if state.policy is None:
            step.clip_val, algorithm = components.loop.clip_setting
            step.clip_algorithm = None if step.clip_val is None else algorithm
        if components.is_distributed and not parameters.on_host:
            self._exchange.start(step)
        return step

    def read(self, step: Step) -> bool:
        """Read the numbers of a step, and exchange them with the other processes.

        Returns:
            Whether any process has gradients.
        """
        components, reading, shards = self._components, step.reading, step.parameters.shards
        exchange = components.exchange
        measures_modules = components.batch.measures_modules
        if step.on_device.gathered is not None:
            has_gradients, measures_modules = self._exchange.read(step)
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
            step.set(loss=own_loss, loss_scale=scale)
            if components.is_distributed:
                note = components.agreement.note(measures_modules)
                is_whole = shards.copies is None
                totals = np.array([local.total] if is_whole and components.loop.gradients_may_differ else [])
                packed = totals if is_whole else shards.packed_norms(local)
                shared = exchange.exchange(own_loss, components.batch.index, has_gradients, packed, note)
                measures_modules = components.agreement.receive(shared.notes, components.optimizers.states)
                local = (
                    nan_unless_all_finite(local, shared.packed) if is_whole else shards.unpacked_norms(shared.packed)
                )
                loss, has_gradients = shared.loss, shared.has_gradients
                step.set(batch_idx=loss.batch_idx, rank=loss.rank, loss=loss.value)
            step.set_gradient_norms(local)
        step.phase = Phase.MEASURED
        if has_gradients and measures_modules:
            step.set(module_gradients=components.module_gradients.take())
            if components.is_automatic:
                components.module_gradients.detach()
        return has_gradients

    def _reuses_norm(self, state: OptimizerState) -> bool:
        """Return whether to measure by torch's own kernel: the loop will clip by its norm, and nothing is logged."""
        components = self._components
        if components.arguments.clip is None or not components.clipper.expects_norm_clipping(state):
            return False
        scalars_due, _ = components.schedule.due(components.loop.step)
        # On an accelerator the step is likely to be deferred.
        return not scalars_due and not (components.is_automatic and not state.parameters().on_host)
