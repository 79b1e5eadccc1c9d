"""Failures of the monitor: the first one switches it off, and the training goes on without it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from lightning_gradexplode.respond import ExplosionError

P = ParamSpec("P")
R = TypeVar("R")


class MayFail(Protocol):
    """An object whose calls are guarded by `never_fatal`.

    Attributes:
        failed: Whether a call has failed.
    """

    failed: bool

    def fail(self, call: str) -> None:
        """Switch off after an error in one of the calls."""

    def announce_failure(self, call: str) -> None:
        """Handle a call after the failure."""


S = TypeVar("S", bound=MayFail)


def never_fatal(call: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Make a failure of the monitor switch it off, with one log entry, and not end the training run."""

    @functools.wraps(call)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if self.failed:
            self.announce_failure(call.__name__)
            return None
        try:
            return call(self, *args, **kwargs)
        except ExplosionError:
            raise
        except Exception:
            self.fail(call.__name__)
            return None

    return guarded
