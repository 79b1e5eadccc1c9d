"""The micro-batches of one optimizer step: their losses, and the measurement of the accumulated gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.distributed.shard_layout import readable
from lightning_gradexplode.engine.backward_pass_counter import BackwardPassCounter
from lightning_gradexplode.engine.removed_gradients import RemovedGradients
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.gradient_details import GradientDetails
from lightning_gradexplode.measure.gradients import GradientReading
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.records.log import logger

MAX_CHANGES = 64
"""Number of backward passes of the first step after which changes of the gradients are looked for."""


class AccumulatedReading(NamedTuple):
    """The measured gradients of one optimizer step, with the losses of its micro-batches.

    Args:
        gradients: The gradients that the optimizer will get.
        device_loss_count: Number of micro-batches whose losses are read along with the gradients.
        micro_batches: Number of micro-batches that the training loop divides each loss by.
        has_scale: Whether the scale of a gradient scaler is read along with them as well.
        scale_adapts: Whether the gradient scaler lowers the scale when gradients overflow.
        is_scaled: Whether the gradients in memory are multiplied by the scale.
        backward_passes: Number of backward passes since the gradients were cleared, None if that is unknown.
        device_loss: The loss on its device, if the processes exchange it there.
        host_losses: The losses of further micro-batches that are known on the host.
    """

    gradients: GradientReading
    device_loss_count: int
    micro_batches: int
    has_scale: bool
    scale_adapts: bool
    is_scaled: bool
    backward_passes: int | None = None
    device_loss: Tensor | None = None
    host_losses: Sequence[float] = ()

    @property
    def loss(self) -> float | None:
        """The mean loss of the micro-batches, unscaled; None if none is known."""
        count = len(self.host_losses) + self.device_loss_count
        if not count:
            return None
        total = sum(self.host_losses)
        if self.device_loss_count:
            total += sum(self.gradients.scalars[: self.device_loss_count])
        scale = (self.scale or 1.0) if self.has_scale else 1.0
        return total / scale * self.micro_batches / count

    @property
    def scale(self) -> float | None:
        """The scale of the gradient scaler, None without one."""
        return self.gradients.scalars[-1] if self.has_scale else None

    @property
    def scale_in_memory(self) -> float:
        """The factor that the gradients in memory are multiplied by."""
        return self.gradients.scalars[-1] if self.is_scaled and self.has_scale else 1.0


class AccumulationWindow:
    """Collects the losses of one optimizer step, and reads them together with its gradients.

    Args:
        loop: The training loop.

    Attributes:
        passes: Counts the backward passes since the gradients were cleared.
        removed: Logs gradients that were measured and that the optimizer does not get.
        first_changes: What the loop itself multiplies the norm of the gradients by before the first step: after each
            backward pass of that step after which it changes them, as far as is known without waiting for an
            accelerator.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._counts_end_of_backward = loop.counts_end_of_backward
        self._host_losses: list[float] = []
        self._device_losses: list[Tensor] = []
        self._early: dict[int, GradientReading] = {}
        self._losses_are_read = self._unreadable_is_logged = False
        self.passes = BackwardPassCounter()
        self.removed = RemovedGradients(loop)
        self.first_changes: list[float] = []
        self._is_first = True

    def add_loss(self, loss: Tensor, value: float | None) -> None:
        """Add the loss of a micro-batch; one on an accelerator is read later, together with the gradients.

        A loss with several elements is not recorded, since a module's own ``backward`` may reduce it in any way. Nor is
        one that this process cannot read, which is logged once.

        Args:
            loss: The loss.
            value: Its value, if it is in host memory.
        """
        if self._losses_are_read and self._counts_end_of_backward:
            self.discard_losses()  # those of the step before, kept for optimizers that step on the same losses
        self._losses_are_read = False
        if value is not None:
            self._host_losses.append(value)
        elif loss.numel() == 1:
            own = readable(loss.detach())
            if own is None:
                self._log_unreadable(loss)
            else:  # if it is an output of a CUDA graph, the next replay of the graph overwrites its memory
                self._device_losses.append(own.clone() if own.is_cuda else own)

    def _log_unreadable(self, loss: Tensor) -> None:
        if not self._unreadable_is_logged and self._loop.is_main_process:
            logger.warning(
                "gradexplode: the value of the loss, a %s%s, cannot be read in this process; it is not recorded",
                type(loss).__name__,
                " on the meta device" if loss.is_meta else "",
            )
        self._unreadable_is_logged = True

    @property
    def newest_loss(self) -> float | None:
        """The loss of the last micro-batch, None if it is not known on the host."""
        return self._host_losses[-1] if self._host_losses else None

    @property
    def unused_loss(self) -> float | None:
        """The last loss, if no step has used it yet and it is known on the host."""
        return None if self._losses_are_read else self.newest_loss

    def discard_losses(self) -> None:
        """Discard the losses so far, such as those of a further evaluation of a closure, which belong to no step."""
        self._host_losses, self._device_losses = [], []

    def gradients_cleared(self) -> None:
        """Record that the training loop is about to clear the gradients, and discard losses that no step has used."""
        self.passes.gradients_cleared()
        self._host_losses, self._device_losses = [], []

    def look_for_changes(self, optimizer: Optimizer, parameters: ParameterSet) -> None:
        """Compare the gradients, before a further backward pass of the first step, with those at the end of the last.

        Args:
            optimizer: The only optimizer.
            parameters: Its parameters.
        """
        before = self._early.get(id(optimizer)) if self._is_first and parameters.on_host else None
        if before is not None and len(self.first_changes) < MAX_CHANGES and not before.holds(parameters):
            self._note_change(before.norms().total, GradientReading.take(parameters).norms().total)

    def _note_change(self, before: float, now: float) -> None:
        if before > 0 and now > 0:  # they are not cleared
            self.first_changes.append(now / before)

    def measure_details_early(self, optimizer: Optimizer, parameters: ParameterSet, with_histograms: bool) -> None:
        """Measure the details of gradients whose norms were measured early, and which the user may clip.

        Args:
            optimizer: The optimizer that gets them.
            parameters: The parameters.
            with_histograms: Whether histograms are due.
        """
        scale, _ = self._loop.loss_scale()
        divisor = 1.0 if scale is None else float(scale)
        self._early[id(optimizer)].details = GradientDetails.of(parameters, divisor, with_histograms)

    def measure_early(self, optimizer: Optimizer, parameters: ParameterSet, with_torch_kernel: bool) -> None:
        """Start measuring gradients that are complete, and still multiplied by the loss scale if there is one.

        Args:
            optimizer: The optimizer that gets them.
            parameters: The parameters whose gradients are measured.
            with_torch_kernel: Whether to measure by the kernel of ``clip_grad_norm_``, so that a clip can use the norm.
        """
        scale, _ = self._loop.loss_scale()
        self._early[id(optimizer)] = self._read(parameters, scale, is_scaled=True, with_torch_kernel=with_torch_kernel)

    def has_early(self, optimizer: Optimizer) -> bool:
        """Return whether gradients were measured early that no step has used yet."""
        return id(optimizer) in self._early

    def has_overflowed(self, optimizer: Optimizer) -> bool:
        """Return whether the gradients that were measured early are not finite."""
        reading = self._early.get(id(optimizer))
        return reading is not None and not math.isfinite(reading.norms().total)

    def close(
        self, optimizer: Optimizer, parameters: ParameterSet, with_torch_kernel: bool, are_cleared: bool = False
    ) -> AccumulatedReading:
        """Return the reading of the step, measured now unless the gradients are those that were measured early.

        Args:
            optimizer: The optimizer that is about to step.
            parameters: Its parameters.
            with_torch_kernel: As in `measure_early`.
            are_cleared: Whether the gradients that were measured early have been cleared since.
        """
        reading = self._early.pop(id(optimizer), None) if self._early else None
        scale, adapts = self._loop.loss_scale()
        is_scaled = scale is not None and unscales_itself(optimizer)
        if reading is None or not (are_cleared or reading.holds(parameters)):
            now = self._read(parameters, scale, is_scaled, with_torch_kernel)
            if reading is not None and not (self._counts_end_of_backward and scale is not None):
                self.removed.look(reading, parameters)  # a step that a scaler has skipped may be over
            reading = now if reading is None else self._chosen(reading, now, parameters)
        self._is_first = False
        is_alone = self._loop.process_group.size == 1
        if is_alone and not reading.has_started:
            reading.start()
        host_losses, device_losses, self._losses_are_read = self._host_losses, self._device_losses, True
        if not self._counts_end_of_backward:
            self._host_losses, self._device_losses = [], []
        passes = self.passes.of(parameters)
        loss = None if parameters.on_host or is_alone else self._device_loss(host_losses, device_losses, scale)
        return AccumulatedReading(
            reading,
            len(device_losses),
            self._loop.micro_batches,
            scale is not None,
            adapts,
            is_scaled,
            passes,
            loss,
            host_losses,
        )

    def _device_loss(
        self, host_losses: Sequence[float], device_losses: Sequence[Tensor], scale: Tensor | None
    ) -> Tensor | None:
        """Return the mean loss of the micro-batches, unscaled, on its device; None if none is known."""
        count = len(host_losses) + len(device_losses)
        if not count:
            return None
        with torch.no_grad():
            each = [loss.reshape(()).to(reading.widest_type(loss.device)) for loss in device_losses]
            known = torch.tensor(sum(host_losses), dtype=torch.float64, device="cpu")
            total = torch.stack(each).sum() + known.to(each[0].dtype) if each else known
            total = total if scale is None else total / scale.to(total.device)
            return total * (self._loop.micro_batches / count)

    def _chosen(self, before: GradientReading, now: GradientReading, parameters: ParameterSet) -> GradientReading:
        """Return the earlier of two readings if the user clipped the gradients between backward pass and step.

        Gradients that have become smaller were clipped, and the norm before the clipping is used. Gradients that have
        grown, or have become finite, were changed in another way, and the present norm is used. If they are still not
        finite, a clip by norm may have spread NaN to all elements, and the earlier reading is used. For sharded
        gradients each process decides for its own shard.
        """
        if not self._loop.may_clip_by_itself:
            return now
        if self._counts_end_of_backward and self._loop.loss_scale()[0] is not None:
            return before  # for a step that the scaler skips, the gradients are cleared by now
        if not parameters.on_host and before.details is None:
            chosen = now.unless_clipped(before)  # without a wait
            if chosen is not None:
                return chosen
        norm, present = before.norms().total, now.norms().total
        if self._is_first:
            self._note_change(norm, present)
        was_clipped = present < norm if math.isfinite(norm) else not math.isfinite(present)
        return before if was_clipped else now

    def _read(
        self, parameters: ParameterSet, scale: Tensor | None, is_scaled: bool, with_torch_kernel: bool
    ) -> GradientReading:
        """Measure the gradients; losses and loss scale are read along with their norms."""
        starts = parameters.on_host  # on accelerators later, once it is known what is read
        if scale is not None and is_scaled:
            return GradientReading.take(parameters, scale, self._device_losses, starts)
        if scale is not None:
            return GradientReading.take(parameters, scalars=[*self._device_losses, scale], starts=starts)
        if with_torch_kernel and starts:
            return GradientReading.take_with_torch_kernel(parameters, self._device_losses)
        return GradientReading.take(parameters, scalars=self._device_losses, starts=starts)


def host_number(loss: Tensor) -> float | None:
    """Return the value of a real loss of one element in host memory; None for any other, without waiting for it."""
    own = loss if type(loss) is Tensor else readable(loss)
    is_known = own is not None and reading.is_on_host(own) and own.numel() == 1 and not own.is_complex()
    return float(own.item()) if own is not None and is_known else None


def is_real_number(loss: Tensor) -> bool:
    """Return whether a loss has one element, which is real and can be read in this process."""
    return loss.numel() == 1 and not loss.is_complex() and readable(loss) is not None


def unscales_itself(optimizer: Optimizer) -> bool:
    """Return whether an optimizer divides by the loss scale in its step, so that gradients before it are scaled."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
