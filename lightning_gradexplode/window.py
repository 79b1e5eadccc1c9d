"""An accumulation window: the losses of its micro-batches, and the reading of the gradients that they add up to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode import _lightning
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.measure.step import GradientReading
from lightning_gradexplode.records import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class WindowReading:
    """What was read of a window, right before its optimizer steps.

    Args:
        gradients: The gradients that the optimizer will be handed.
        loss: The mean of the micro-batches' losses, unscaled; None if none is known.
        scale: The AMP scale, None without one.
        adapts: Whether the gradient scaler lowers it when gradients overflow.
        is_scaled: Whether the gradients in memory are multiplied by it.
    """

    gradients: GradientReading
    loss: float | None
    scale: float | None
    adapts: bool
    is_scaled: bool

    @property
    def scale_in_memory(self) -> float:
        """What the gradients in memory are multiplied by."""
        return self.scale if self.is_scaled and self.scale is not None else 1.0


class Window:
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

    def close(self, optimizer: Optimizer, parameters: ParameterSet, as_torch_does: bool) -> WindowReading:
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
        number = None if scale is None else float(reading.scalars[-1])
        loss = self._mean(reading.scalars[: len(self._losses)], number)
        self._losses = []
        return WindowReading(reading, loss, number, adapts, is_scaled)

    def _read(
        self, parameters: ParameterSet, scale: Tensor | None, is_scaled: bool, as_torch_does: bool
    ) -> GradientReading:
        """Measure the gradients, and read the losses and the AMP scale along with their norms."""
        if scale is not None:
            return GradientReading.take(parameters, scale if is_scaled else 1.0, [*self._losses, scale])
        if as_torch_does:
            return GradientReading.take_as_torch_does(parameters, self._losses)
        return GradientReading.take(parameters, scalars=self._losses)

    def _mean(self, losses: FloatArray, scale: float | None) -> float | None:
        """Give the mean of the micro-batches' losses, which Lightning divides by their number and AMP scales."""
        if not len(losses):
            return None
        return float(losses.sum()) / (scale or 1.0) * self._trainer.accumulate_grad_batches / len(losses)
