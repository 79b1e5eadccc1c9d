"""The package's logger, ``lightning_gradexplode``."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class ShieldedLogger(_Adapter):
    """Logs to a logger of Python. A handler that raises, which users can add, does not end what is logging.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        self._has_failed = False

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message; the first failure of a handler is written to standard error in one line."""
        try:
            self.logger.log(level, msg, *args, **{"stacklevel": 2, **kwargs})
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                with suppress(Exception):  # standard error may be closed
                    sys.stderr.write(f"gradexplode: a logging handler raised {type(error).__name__}: {error}\n")


logger = ShieldedLogger(logging.getLogger("lightning_gradexplode"))
"""The logger of all messages, which users configure by ``logging.getLogger("lightning_gradexplode")``."""
