"""Steps of optimizers with gradients of no backward pass that was announced, in training loops of plain PyTorch."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.distributed.shard_layout import version_of

ASSIGNED_GRADIENTS = (
    "an optimizer steps with gradients that no backward pass of the loss has accumulated; they are measured as it gets "
    "them, after any clipping"
)
"""What is logged once in loops that assign gradients, such as those of ``torch.autograd.grad``."""

SAME_GRADIENTS = (
    "an optimizer steps again with the gradients of its step before, without a backward pass in between; each of these "
    "steps is recorded"
)
"""What is logged once in loops that call ``step()`` several times for each backward pass."""


class UnannouncedSteps:
    """Logs why an optimizer steps without a backward pass before it that was announced.

    Args:
        late_measurement: What is logged where the loop has announced none.
        warn_once: Logs a message, the first time.

    Attributes:
        loss_is_known: Whether a backward pass since the last step was announced and has left the gradients as they are.
    """

    def __init__(self, late_measurement: str, warn_once: Callable[[str], None]) -> None:
        self.loss_is_known = False
        self._late_measurement, self._warn_once = late_measurement, warn_once
        # The first gradient of each optimizer at its last step, and how often it had been written to.
        self._used: dict[int, tuple[Callable[[], Tensor | None], int]] = {}

    def look(self, optimizer: Optimizer, is_traced: bool) -> None:
        """Log why no backward pass of a step was announced, if the optimizer has gradients.

        Args:
            optimizer: The optimizer that steps.
            is_traced: Whether the loop announces its passes in compiled code, where that has no effect.
        """
        gradient = _first_gradient(optimizer)
        if gradient is None:
            return
        used, version = self._used.get(id(optimizer), (_nothing, 0))
        if used() is gradient and version == version_of(gradient):
            self._warn_once(SAME_GRADIENTS)
        elif self.loss_is_known or not is_traced:
            self._warn_once(ASSIGNED_GRADIENTS if self.loss_is_known else self._late_measurement)

    def stepped(self, optimizer: Optimizer) -> None:
        """Record the gradients that an optimizer has stepped with."""
        gradient = _first_gradient(optimizer)
        self._used[id(optimizer)] = (_nothing, 0) if gradient is None else (weakref.ref(gradient), version_of(gradient))
        self.loss_is_known = False


def _first_gradient(optimizer: Optimizer) -> Tensor | None:
    """Return the first gradient that an optimizer gets, None if it gets none."""
    for group in optimizer.param_groups:  # at each step, of which `held_by` would list all parameters
        for one in group["params"]:
            if one.grad is not None:
                gradient: Tensor = one.grad
                return gradient
    return None


def _nothing() -> None:
    """Stand for a reference to no tensor."""
