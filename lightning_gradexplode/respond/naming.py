"""The short names of responses, as the monitor's argument ``on_explosion`` takes them."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.respond.base import Response
from lightning_gradexplode.respond.checkpoint import SaveCheckpoint
from lightning_gradexplode.respond.learning_rate import ReduceLearningRate
from lightning_gradexplode.respond.rollback import Rollback
from lightning_gradexplode.respond.skipping import SkipStep
from lightning_gradexplode.respond.stopping import RaiseError, StopTraining, Warn

_BY_NAME: dict[str, type[Response]] = {
    "warn": Warn,
    "skip": SkipStep,
    "reduce-lr": ReduceLearningRate,
    "rollback": Rollback,
    "checkpoint": SaveCheckpoint,
    "stop": StopTraining,
    "raise": RaiseError,
}


def responses(on_explosion: str | Response | Sequence[str | Response]) -> list[Response]:
    """Build the responses that the monitor's argument ``on_explosion`` names.

    Raises:
        ValueError: A name is unknown, or there is none.
        TypeError: An entry is neither a name nor a response.
    """
    if isinstance(on_explosion, (str, Response)):
        return [_response(on_explosion)]
    if not isinstance(on_explosion, Sequence):
        raise _wrong_type(on_explosion)
    if not on_explosion:
        raise ValueError("on_explosion is empty; it takes at least one of " + _names())
    return [_response(entry) for entry in on_explosion]


def _response(entry: str | Response) -> Response:
    if isinstance(entry, Response):
        return entry
    if not isinstance(entry, str):
        raise _wrong_type(entry)
    if entry not in _BY_NAME:
        raise ValueError(f"on_explosion={entry!r} is unknown; it takes {_names()}, or a Response")
    return _BY_NAME[entry]()


def _wrong_type(value: object) -> TypeError:
    return TypeError(f"on_explosion got {value!r}; it takes {_names()}, a Response, or a sequence of these")


def _names() -> str:
    return ", ".join(repr(name) for name in _BY_NAME)
