"""The monitor that the environment adds to a Trainer."""

from __future__ import annotations

import logging

from lightning_gradexplode.callback import GradientExplosionMonitor
from lightning_gradexplode.hosts.lightning import LightningModule, Trainer

logger = logging.getLogger("lightning_gradexplode")


class AutomaticMonitor(GradientExplosionMonitor):
    """A `GradientExplosionMonitor` that stands down where the user passed one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a stage."""
        super().setup(trainer, pl_module, stage)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        others = [one for one in callbacks if isinstance(one, GradientExplosionMonitor) and one is not self]
        self._stands_down = bool(others)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to monitor a fit, unless another monitor does."""
        if self._stands_down:
            logger.info("gradexplode: the monitor of the environment stands down, since the trainer has one")
            return
        super().on_train_start(trainer, pl_module)
