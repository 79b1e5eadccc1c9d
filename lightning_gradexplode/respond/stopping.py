"""The responses that end a run, and the one that only warns."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.records import Finding
from lightning_gradexplode.respond.base import ExplosionError, Response, ResponseContext


class Warn(Response):
    """Do not change the run. Findings are logged with any response."""

    only_warns = True
    is_remedy = False

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Change nothing; the next response acts."""
        return False


class StopTraining(Response):
    """Stop training after the batch, and skip each update before which the explosion is found.

    Training continues until the trainer's ``min_epochs`` and ``min_steps`` are reached; this is logged with the reason.
    """

    always_acts = True

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> None:
        """Hold back the update, and stop training."""
        run.hold_back_update()
        run.stop()


class RaiseError(Response):
    """End training with an `ExplosionError` before the bad update is applied."""

    always_acts = True

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> None:
        """Raise the error.

        Raises:
            ExplosionError: Always.
        """
        raise ExplosionError(findings)
