"""An accumulation window: the losses of its micro-batches, and the reading of the gradients that they add up to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.hosts import lightning as _lightning
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.step import GradientReading


@dataclass(frozen=True, slots=True, eq=False)
class AccumulatedReading:
    """What was read of a window, right before its optimizer steps.

    Args:
        gradients: The gradients that the optimizer will be handed.
        losses: Number of micro-batches whose losses were read along with them.
        micro_batches: Number of micro-batches that Lightning divides each loss by.
        has_scale: Whether an AMP scale was read along with them as well.
        adapts: Whether the gradient scaler lowers it when gradients overflow.
        is_scaled: Whether the gradients in memory are multiplied by it.
    """

    gradients: GradientReading
    losses: int
    micro_batches: int
    has_scale: bool
    adapts: bool
    is_scaled: bool

    @property
    def loss(self) -> float | None:
        """The mean of the micro-batches' losses, unscaled; None if none is known."""
        if not self.losses:
            return None
        total = float(self.gradients.scalars[: self.losses].sum())
        return total / (self.scale or 1.0) * self.micro_batches / self.losses

    @property
    def scale(self) -> float | None:
        """The AMP scale, None without one."""
        return float(self.gradients.scalars[-1]) if self.has_scale else None

    @property
    def scale_in_memory(self) -> float:
        """What the gradients in memory are multiplied by."""
        return self.scale if self.is_scaled and self.scale is not None else 1.0


class AccumulationWindow:
    """Collects what belongs to one step of an optimizer until it is read.

    Args:
        trainer: The trainer of the run.
    """

    def __init__(self, trainer: _lightning.Trainer) -> None:
        self._trainer = trainer
        self._losses: list[Tensor] = []
        self._reading: GradientReading | None = None

    def add_loss(self, loss: Tensor) -> None:
        """Note the loss of a micro-batch; it stays where it is until the gradients are read."""
        self._losses.append(loss.detach())

    def measure_early(self, parameters: ParameterSet, as_torch_does: bool) -> None:
        """Measure gradients that are complete, and still have the AMP scale if there is one.

        Args:
            parameters: Whose gradients.
            as_torch_does: Whether to measure them by the kernel that torch clips by.
        """
        scale, _ = _lightning.loss_scale(self._trainer)
        self._reading = self._read(parameters, scale, is_scaled=True, as_torch_does=as_torch_does)

    def close(self, optimizer: Optimizer, parameters: ParameterSet, as_torch_does: bool) -> AccumulatedReading:
        """Give what was read of the window, measuring the gradients if they are not those that were measured early.

        Args:
            optimizer: What is about to step.
            parameters: Its parameters.
            as_torch_does: Whether to measure their gradients by the kernel that torch clips by.
        """
        reading, self._reading = self._reading, None
        scale, adapts = _lightning.loss_scale(self._trainer)
        is_scaled = scale is not None and _lightning.unscales_itself(optimizer)
        if reading is None or not reading.holds(parameters):
            reading = self._read(parameters, scale, is_scaled, as_torch_does)
        losses, self._losses = len(self._losses), []
        return AccumulatedReading(
            reading, losses, self._trainer.accumulate_grad_batches, scale is not None, adapts, is_scaled
        )

    def _read(
        self, parameters: ParameterSet, scale: Tensor | None, is_scaled: bool, as_torch_does: bool
    ) -> GradientReading:
        """Measure the gradients, and read the losses and the AMP scale along with their norms."""
        if scale is not None:
            return GradientReading.take(parameters, scale if is_scaled else 1.0, [*self._losses, scale])
        if as_torch_does:
            return GradientReading.take_as_torch_does(parameters, self._losses)
        return GradientReading.take(parameters, scalars=self._losses)
