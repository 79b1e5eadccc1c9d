"""The clipping of Lightning's Trainer: its clip value, and its norm clipping by a norm that was measured already."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode.engine.accumulation import unscales_itself
from lightning_gradexplode.hosts.lightning_namespaces import Trainer, clip_algorithms, is_overridden

logger = logging.getLogger("lightning_gradexplode")


class TrainerClipping:
    """Sets the clip value of a trainer, and restores the user's own.

    Args:
        trainer: The trainer.

    Attributes:
        is_overridden: Whether the module has its own ``configure_gradient_clipping``.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._found = (trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        self._undo: Callable[[], None] | None = None
        self.is_overridden = is_overridden(trainer.lightning_module, "configure_gradient_clipping")

    @property
    def setting(self) -> tuple[float | None, str]:
        """The trainer's ``gradient_clip_val`` and ``gradient_clip_algorithm``."""
        value, algorithm = self._trainer.gradient_clip_val, self._trainer.gradient_clip_algorithm
        name = "norm" if algorithm is None else str(getattr(algorithm, "value", algorithm))
        return (float(value) if value else None), name

    def set(self, value: float | None, algorithm: str | None) -> None:
        """Assign clip value and algorithm, which the trainer reads after ``on_before_optimizer_step``."""
        self._trainer.gradient_clip_val = value
        self._trainer.gradient_clip_algorithm = None if algorithm is None else clip_algorithms(self._trainer)(algorithm)

    def restore(self) -> None:
        """Restore the user's clip value and algorithm, and the precision plugin's own clipping."""
        self._trainer.gradient_clip_val, self._trainer.gradient_clip_algorithm = self._found
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def is_possible(self, optimizer: Optimizer) -> bool:
        """Return whether the trainer can clip an optimizer's gradients; with some precision plugins it would raise."""
        raises = unscales_itself(optimizer) and type(self._trainer.precision_plugin).__name__ == "MixedPrecision"
        return not self.is_overridden and not raises

    def use_measured_norm(self, clip: Callable[[Optimizer, float], bool]) -> None:
        """Replace the norm clipping of the precision plugin, unless the plugin clips in a way of its own.

        Args:
            clip: See `lightning_gradexplode.hosts.base.TrainingLoop.use_measured_norm`.
        """
        plugin: Any = self._trainer.precision_plugin
        own = getattr(type(plugin).clip_grad_by_norm, "__qualname__", "")
        if own != "Precision.clip_grad_by_norm" or "clip_grad_by_norm" in vars(plugin):
            return

        def undo() -> None:
            vars(plugin).pop("clip_grad_by_norm", None)

        plugin.clip_grad_by_norm = _ClippingByMeasuredNorm(plugin.clip_grad_by_norm, clip, undo)
        self._undo = undo


class _ClippingByMeasuredNorm:
    """A precision plugin's norm clipping, by a norm that was measured already; in a copy of the plugin, its own."""

    def __init__(
        self,
        original: Callable[[Optimizer, float], None],
        clip: Callable[[Optimizer, float], bool],
        undo: Callable[[], None],
    ) -> None:
        self._original = original
        self._clip = clip
        self._undo = undo

    def __call__(self, optimizer: Optimizer, clip_val: float) -> None:
        try:
            clipped = self._clip(getattr(optimizer, "optimizer", optimizer), clip_val)
        except Exception:
            logger.exception("gradexplode: the measured norm could not be used; the trainer clips by itself")
            self._undo()
            clipped = False
        if not clipped:
            self._original(optimizer, clip_val)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unchanged, (self._original,)


def _unchanged(value: Any) -> Any:
    return value
