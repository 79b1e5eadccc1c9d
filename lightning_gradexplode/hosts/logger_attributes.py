"""Attributes of a run's loggers; one that raises counts as not set."""

from __future__ import annotations

import os
from typing import Any

from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe


class LoggerAttributes:
    """Reads attributes of loggers. The first failure of each logger is logged with its name."""

    def __init__(self) -> None:
        self._failed: set[int] = set()

    def read(self, one: Any, name: str) -> Any:
        """Return an attribute of a logger; None if it has none, or raises."""
        try:
            return getattr(one, name, None)
        except Exception as error:
            if id(one) not in self._failed:
                self._failed.add(id(one))
                kind = type(one).__name__
                logger.warning("gradexplode: %s.%s raised %s; it counts as not set", kind, name, describe(error))
            return None

    def text(self, one: Any, name: str) -> str | None:
        """Return an attribute as text; None if it has none, or it is neither text nor a number."""
        value = self.read(one, name)
        return str(value) if isinstance(value, (str, int, float)) else None

    def folder(self, one: Any, name: str) -> str | None:
        """Return an attribute that is a path; None if it is not set, or no path."""
        value = self.read(one, name)
        return os.fspath(value) if isinstance(value, (str, os.PathLike)) and value else None
