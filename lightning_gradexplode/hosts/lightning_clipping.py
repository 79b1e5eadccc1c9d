"""The clipping of Lightning's Trainer: its clip value, and its norm clipping by the measured norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode.engine.accumulation import unscales_itself
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.lightning_namespaces import Trainer, clip_algorithms, is_overridden
from lightning_gradexplode.records.log import logger


class LightningClipping(TrainingLoop):
    """The part of the adapter that sets the trainer's clip value, and restores the user's own.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._clip_found = (trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        self._overrides_clipping = is_overridden(trainer.lightning_module, "configure_gradient_clipping")
        self._restore_plugin: Callable[[], None] | None = None

    def set_clip(self, value: float | None, algorithm: str | None) -> None:
        """Assign clip value and algorithm, which the trainer reads after ``on_before_optimizer_step``."""
        self.trainer.gradient_clip_val = value
        self.trainer.gradient_clip_algorithm = None if algorithm is None else clip_algorithms(self.trainer)(algorithm)

    def restore_clip(self) -> None:
        """Restore the user's clip value and algorithm, and the precision plugin's own clipping."""
        self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm = self._clip_found
        restore, self._restore_plugin = self._restore_plugin, None
        if restore is not None:
            restore()

    def clips(self, optimizer: Optimizer) -> bool:
        """Return whether the trainer clips: not in manual optimization, and not where it would raise."""
        raises = unscales_itself(optimizer) and type(self.trainer.precision_plugin).__name__ == "MixedPrecision"
        return self.is_automatic and not self._overrides_clipping and not raises

    @property
    def overrides_clipping(self) -> bool:
        """Whether the module has its own ``configure_gradient_clipping``."""
        return self._overrides_clipping

    def use_measured_norm(self, clip: Callable[[Optimizer, float], bool]) -> None:
        """Replace the norm clipping of the precision plugin, unless the plugin clips in a way of its own."""
        plugin = self.trainer.precision_plugin
        own = getattr(type(plugin).clip_grad_by_norm, "__qualname__", "")
        if own != "Precision.clip_grad_by_norm" or "clip_grad_by_norm" in vars(plugin):
            return

        def restore() -> None:
            vars(plugin).pop("clip_grad_by_norm", None)

        plugin.clip_grad_by_norm = _ClippingByMeasuredNorm(plugin.clip_grad_by_norm, clip, restore)
        self._restore_plugin = restore


class _ClippingByMeasuredNorm:
    """A precision plugin's norm clipping by the measured norm. A copy of the plugin has its own clipping again."""

    def __init__(
        self,
        original: Callable[[Optimizer, float], None],
        clip: Callable[[Optimizer, float], bool],
        restore: Callable[[], None],
    ) -> None:
        self._original = original
        self._clip = clip
        self._restore = restore

    def __call__(self, optimizer: Optimizer, clip_val: float) -> None:
        try:
            clipped = self._clip(getattr(optimizer, "optimizer", optimizer), clip_val)
        except Exception:
            logger.exception("gradexplode: the measured norm could not be used; the trainer clips by itself")
            self._restore()
            clipped = False
        if not clipped:
            self._original(optimizer, clip_val)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unchanged, (self._original,)


def _unchanged(value: Any) -> Any:
    return value
