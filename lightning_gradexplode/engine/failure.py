"""Failures of the monitor: the first one switches it off, and training continues without it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from lightning_gradexplode.distributed.process_group import ProcessFailedError
from lightning_gradexplode.engine.components import Components
from lightning_gradexplode.measure.graph_capture import GraphCapture
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.respond import ExplosionError

MONITOR_IS_OFF = "gradexplode: the monitor is off for this run, it logs and clips nothing: %s"
"""The message where the gradients of a run cannot be measured, with the reason."""

MONITOR_FAILED = "gradexplode: the monitor failed and is off; the training goes on without it"
MONITOR_FAILED_AT_START = "gradexplode: the monitor failed at the start and is off; the training goes on without it"

P = ParamSpec("P")
R = TypeVar("R")


class CallGuard:
    """Whether the calls of a run are made, for `never_fatal`; it switches the monitor off at the first failure.

    Args:
        components: The components of the run.
        graph_capture: Detects calls that are captured by a CUDA graph or traced by ``torch.compile``.
        release: Restores the training loop after a failure.

    Attributes:
        failed: Whether a call has failed.
        graph_capture: As given.
    """

    def __init__(self, components: Components, graph_capture: GraphCapture, release: Callable[[], None]) -> None:
        self.failed = False
        self.graph_capture = graph_capture
        self._components = components
        self._release = release

    def fail(self) -> None:
        """Switch the monitor off after the error that is being handled, log it, and restore the training loop."""
        self.failed = True
        error = sys.exc_info()[1]
        if isinstance(error, ProcessFailedError):
            logger.warning(MONITOR_IS_OFF, f"{error}; the training goes on")
        else:
            logger.exception(MONITOR_FAILED)
        self._release()

    def announce_failure(self, call: str) -> None:
        """Participate once in the next exchange, so that the other processes learn of the failure.

        Args:
            call: Name of a method of the run, which is called after the failure.
        """
        try:
            self._withdraw(call)
        except Exception as error:  # such as that of a process that has ended
            logger.debug("gradexplode: the failure could not be reported to the other processes: %s", error)

    def _withdraw(self, call: str) -> None:
        components = self._components
        if call == "gradients_ready":
            components.exchange.withdraw(packs_gradients=True)
        elif call == "batch_ended" and not components.is_automatic:
            components.exchange.withdraw(packs_gradients=False)
        elif call.startswith("finish_") or (call == "batch_ended" and components.loop.is_last_batch):
            components.agreement.withdraw_notes()


def never_fatal(
    call: Callable[Concatenate[Any, P], R], of: str | None = None
) -> Callable[Concatenate[Any, P], R | None]:
    """Make a failure of the monitor switch it off, with one log entry, and not end the training run.

    Nothing is done in a call that a CUDA graph captures or ``torch.compile`` traces.

    Args:
        call: A method of an object with a `CallGuard` as its attribute ``guard``, or of an attribute of that object.
        of: Name of that attribute; None for the object itself.
    """

    @functools.wraps(call)
    def guarded(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        guard: CallGuard = self.guard
        if torch.compiler.is_compiling():
            guard.graph_capture.note_tracing()
            return None
        if guard.graph_capture.is_possible and guard.graph_capture.is_running():
            return None
        if guard.failed:
            guard.announce_failure(call.__name__)
            return None
        try:
            return call(self if of is None else getattr(self, of), *args, **kwargs)
        except ExplosionError:
            raise
        except Exception:
            guard.fail()
            return None

    return guarded
