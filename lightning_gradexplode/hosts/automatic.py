"""The monitor that the environment adds to a Trainer."""

from __future__ import annotations

from lightning_gradexplode.callback import GradientExplosionMonitor
from lightning_gradexplode.records.log import logger


class AutomaticMonitor(GradientExplosionMonitor):
    """A `GradientExplosionMonitor` that is not used where the user passed one."""

    is_automatic = True

    def _log_disabled(self) -> None:
        logger.info("gradexplode: GRADEXPLODE=1 adds no monitor, since the trainer has one")
