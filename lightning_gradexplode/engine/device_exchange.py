"""The exchange of a step's numbers between processes on their devices, read later with the numbers of the process."""

from __future__ import annotations

import torch

from lightning_gradexplode.distributed.exchange import SharedStep, nan_unless_all_finite
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.measure.reading import PendingRead
from lightning_gradexplode.records import Norms
from lightning_gradexplode.records.log import logger

MAX_SECONDS = 1.0
"""Maximum time to wait for numbers at the end of a run; those of a process that has ended never arrive."""


class DeviceExchange:
    """Exchanges the measurements of a step on accelerators, with one collective and without waiting for the device.

    Args:
        components: The components of the run.
    """

    def __init__(self, components: Components) -> None:
        self._components = components

    def start(self, step: Step) -> None:
        """Exchange the numbers of a step on their device, and start their transfer to the host together."""
        exchange, reading, shards = self._components.exchange, step.reading, step.parameters.shards
        try:
            device = exchange.world.device
            packed = torch.zeros(0, dtype=torch.float64, device=device)
            if shards.copies is not None:
                packed = reading.gradients.norms_on_device(device)
            elif self._components.loop.gradients_may_differ:
                packed = torch.linalg.vector_norm(reading.gradients.norms_on_device(device)).reshape(1)
            loss, has_gradients = reading.device_loss, reading.gradients.any
        except Exception:
            exchange.withdraw(packs_gradients=True)
            raise
        note = self._components.agreement.note(self._components.batch.measures_modules)
        gathered = exchange.start(loss, step.batch_idx, has_gradients, packed, note)
        if shards.copies is not None:
            step.on_device.gathered_norms = gathered.view(exchange.world.size, -1)[:, -len(packed) :]
        started = reading.gradients.start([gathered])
        step.on_device.gathered = reading.gradients if started else PendingRead([gathered])

    def receive(self, step: Step) -> tuple[SharedStep, bool]:
        """Read the measurements of a step that the processes have exchanged.

        Returns:
            The measurements, and whether error gradients of modules are measured on all processes.
        """
        pending, components = step.on_device.gathered, self._components
        assert pending is not None
        values = pending.values() if isinstance(pending, PendingRead) else pending.more
        shared = components.exchange.finish(values, step.batch_idx)
        return shared, components.agreement.receive(shared.notes, components.optimizers.states)

    def read(self, step: Step) -> tuple[bool, bool]:
        """Read the numbers of a step that the processes have exchanged.

        Returns:
            Whether any process has gradients, and whether error gradients of modules are measured on all.
        """
        shards = step.parameters.shards
        shared, measures_modules = self.receive(step)
        norms = None if shards.copies is None else shards.finite_norms(shared.packed)
        if norms is None:  # elements that are not finite are counted, by all processes together
            norms = shards.norms(step.reading.gradients.norms(step.gradients_intact))
        self._set(step, shared, norms)
        return shared.has_gradients, measures_modules

    def read_arrived(self, step: Step) -> bool:
        """Read the numbers of a step, if they have arrived, in a process whose others may have ended.

        Nothing is exchanged: the processes have done that when the step began. Elements that are not finite are not
        counted.

        Returns:
            Whether the numbers are known, and any process has gradients.
        """
        shards, pending = step.parameters.shards, step.on_device.gathered
        try:
            if pending is None or not pending.arrives_within(MAX_SECONDS):
                return False
            shared, _ = self.receive(step)
        except Exception as error:  # the device itself may have failed
            logger.debug("gradexplode: the numbers of step %d are lost: %s", step.number, error)
            return False
        local = step.reading.gradients.norms(intact=False)
        norms = local if shards.copies is None else shards.uncounted_norms(shared.packed)
        if norms is not None:
            self._set(step, shared, norms)
        return shared.has_gradients and norms is not None

    def _set(self, step: Step, shared: SharedStep, norms: Norms) -> None:
        loss, reading = shared.loss, step.reading
        if step.parameters.shards.copies is None:
            norms = nan_unless_all_finite(norms, shared.packed)
        step.set(batch_idx=loss.batch_idx, rank=loss.rank, loss=loss.value, loss_scale=reading.scale)
        step.scale = reading.scale_in_memory
        step.set_gradient_norms(norms)
