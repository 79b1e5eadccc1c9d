"""The responses that end a run, and the one that only speaks."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.records import Finding
from lightning_gradexplode.respond.base import ExplosionError, Response, Run


class Warn(Response):
    """Do nothing to the run; findings are told in any case."""

    def respond(self, findings: Sequence[Finding], run: Run) -> None:
        """Leave the run alone."""


class StopTraining(Response):
    """End the training cleanly, and hold back the update of the step at which the explosion was seen."""

    def respond(self, findings: Sequence[Finding], run: Run) -> None:
        """Hold back the update and ask the trainer to stop."""
        run.hold_back_update()
        run.stop()


class RaiseError(Response):
    """End the training with an `ExplosionError` before the bad update is applied."""

    def respond(self, findings: Sequence[Finding], run: Run) -> None:
        """Raise the error.

        Raises:
            ExplosionError: Always.
        """
        raise ExplosionError(findings)


_BY_NAME: dict[str, type[Response]] = {"warn": Warn, "stop": StopTraining, "raise": RaiseError}
_PLANNED = ("skip", "reduce-lr", "rollback", "checkpoint")


def responses(on_explosion: str | Response | Sequence[str | Response]) -> list[Response]:
    """Build the responses that the monitor's argument ``on_explosion`` names.

    Raises:
        ValueError: A name is unknown, or not available in this version.
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
    if entry in _PLANNED:
        raise ValueError(f"on_explosion={entry!r} is not available in this version yet; it takes {_names()}")
    if entry not in _BY_NAME:
        raise ValueError(f"on_explosion={entry!r} is unknown; it takes {_names()}, or a Response")
    return _BY_NAME[entry]()


def _wrong_type(value: object) -> TypeError:
    return TypeError(f"on_explosion got {value!r}; it takes {_names()}, a Response, or a sequence of these")


def _names() -> str:
    return ", ".join(repr(name) for name in _BY_NAME)
