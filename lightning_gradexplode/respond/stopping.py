"""The responses that end a run, and the one that only speaks."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.records import Finding
from lightning_gradexplode.respond.base import ExplosionError, Response, ResponseContext


class Warn(Response):
    """Do nothing to the run; findings are told in any case."""

    only_speaks = True

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Leave the run alone, and to the next response."""
        return False


class StopTraining(Response):
    """End the training cleanly, and hold back the update of the step at which the explosion was seen."""

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> None:
        """Hold back the update and ask the trainer to stop."""
        run.hold_back_update()
        run.stop()


class RaiseError(Response):
    """End the training with an `ExplosionError` before the bad update is applied."""

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> None:
        """Raise the error.

        Raises:
            ExplosionError: Always.
        """
        raise ExplosionError(findings)
