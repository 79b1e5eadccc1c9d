"""Failures of the monitor: the first one switches it off, and training continues without it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from lightning_gradexplode.measure.graph_capture import GraphCapture
from lightning_gradexplode.respond import ExplosionError

MONITOR_IS_OFF = "gradexplode: the monitor is off for this run, it logs and clips nothing: %s"
"""The message where the gradients of a run cannot be measured, with the reason."""

MONITOR_FAILED = "gradexplode: the monitor failed and is off; the training goes on without it"
MONITOR_FAILED_AT_START = "gradexplode: the monitor failed at the start and is off; the training goes on without it"

P = ParamSpec("P")
R = TypeVar("R")


class MayFail(Protocol):
    """An object whose calls are guarded by `never_fatal`.

    Attributes:
        failed: Whether a call has failed.
        graph_capture: Detects calls that are captured by a CUDA graph or traced by ``torch.compile``.
    """

    failed: bool
    graph_capture: GraphCapture

    def fail(self, call: str) -> None:
        """Switch off after an error in one of the calls."""

    def announce_failure(self, call: str) -> None:
        """Handle a call after the failure."""


S = TypeVar("S", bound=MayFail)


def never_fatal(call: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Make a failure of the monitor switch it off, with one log entry, and not end the training run.

    Nothing is done in a call that a CUDA graph captures or ``torch.compile`` traces.
    """

    @functools.wraps(call)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if torch.compiler.is_compiling():
            self.graph_capture.note_tracing()
            return None
        if self.graph_capture.is_possible and self.graph_capture.is_running():
            return None
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
