"""The monitor that the environment adds to a Trainer."""

from __future__ import annotations

import logging

from lightning_gradexplode.callback import GradientExplosionMonitor

logger = logging.getLogger("lightning_gradexplode")


class AutomaticMonitor(GradientExplosionMonitor):
    """A `GradientExplosionMonitor` that stands down where the user passed one."""

    is_automatic = True

    def _log_standing_down(self) -> None:
        logger.info("gradexplode: the monitor of the environment stands down, since the trainer has one")
