"""The callbacks of Lightning's Trainer."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning_gradexplode.hosts.lightning_namespaces import Trainer
from lightning_gradexplode.records.log import logger

Kind = TypeVar("Kind")


def monitors_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """Return the monitors of a trainer. One that was passed several times is removed from its later positions.

    Args:
        trainer: The trainer.
        kind: The class of the monitors.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    monitors: list[Kind] = []
    for place, one in reversed([*enumerate(callbacks)]):
        if isinstance(one, kind):
            if any(one is earlier for earlier in callbacks[:place]):
                del callbacks[place]
                logger.warning("gradexplode: a monitor was passed to the trainer several times; one is enough")
            else:
                monitors.insert(0, one)
    return monitors
