"""Gradients that the user's own code clips while they are still multiplied by the scale of a gradient scaler."""

from __future__ import annotations

import math

from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.records import StepRecord
from lightning_gradexplode.records.log import logger

CLIPPED_WHILE_SCALED = (
    "gradexplode at step %d: the optimizer gets gradients with a norm of %.3g, which is %.4g divided by the scale of "
    "the gradient scaler; the gradients of the loss have a norm of %.3g. They are clipped while they are still scaled: "
    "call scaler.unscale_(optimizer) before clipping"
)

_LEAST_SCALE = 1024.0
"""Scale from which a clip value that is divided by it cannot be meant."""


def clip_value_of_scaled(norm: float | None, clipped: float | None, scale: float | None) -> float | None:
    """Return the value that gradients were clipped to before they were divided by the scale of a gradient scaler.

    Args:
        norm: The norm of the gradients before clipping, unscaled.
        clipped: The norm of the gradients that the optimizer gets.
        scale: The scale.

    Returns:
        A value of at most two digits, since clip values are chosen by hand; None if the norms do not show one.
    """
    if norm is None or clipped is None or scale is None or not scale >= _LEAST_SCALE or not 0 < clipped < 0.1 * norm:
        return None
    value = clipped * scale
    rounded = float(f"{value:.1e}")
    return rounded if math.isclose(value, rounded, rel_tol=1e-4) else None


class ScaledClipping:
    """Logs the first time that gradients were clipped while they were scaled.

    Args:
        loop: The training loop.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._is_named = False

    def look(self, record: StepRecord) -> None:
        """Compare the norms of a step, of which the one after clipping is known where scalars are logged."""
        if self._is_named or record.clip_val is not None or record.grad_norm_clipped is None:
            return
        value = clip_value_of_scaled(record.grad_norm, record.grad_norm_clipped, record.loss_scale)
        if value is None:
            return
        self._is_named = True
        if self._loop.is_main_process:
            norms = record.grad_norm_clipped, value, record.grad_norm
            logger.warning(CLIPPED_WHILE_SCALED, record.step, *norms)
