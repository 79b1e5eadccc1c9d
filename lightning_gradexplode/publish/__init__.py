"""Names of version 0.1.0, now in `lightning_gradexplode.loggers`; to be removed in the next release."""

import warnings

from lightning_gradexplode.loggers import LoggerAdapter as Publisher
from lightning_gradexplode.loggers import LoggerCollection as Board
from lightning_gradexplode.loggers import alert_rules
from lightning_gradexplode.loggers import register_logger_adapter as register_publisher

__all__ = ["Board", "Publisher", "alert_rules", "register_publisher"]

warnings.warn(
    "lightning_gradexplode.publish is deprecated: use LoggerAdapter, register_logger_adapter and alert_rules of "
    "lightning_gradexplode.loggers",
    DeprecationWarning,
    stacklevel=2,
)
