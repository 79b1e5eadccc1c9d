"""Collection of facts that may fail without consequences for the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe

T = TypeVar("T")


def collect_or_log(what: str, collect: Callable[[], T]) -> T | None:
    """Return the result of `collect`; if it raises, log the error with the name `what` and return None."""
    try:
        return collect()
    except Exception as error:
        logger.warning("gradexplode: %s could not be collected: %s", what, describe(error))
        logger.debug("gradexplode: traceback", exc_info=True)
        return None
