"""The actions of the responses in a run, kept for the report and logged in a bounded number of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradexplode.records import Attempt
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.repeats import SHOWN, Repeats

if TYPE_CHECKING:
    from lightning_gradexplode.respond.base import ResponseContext

MAX_ATTEMPTS = 64


class ActionLog:
    """The actions of the responses, in the order in which they were taken.

    Each is kept as an `Attempt` (the last `MAX_ATTEMPTS`) and logged on the main process: of each kind the first
    three times (of skipped updates, the first time), then the 10th, 100th and so on.
    """

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._repeats = Repeats()
        self._logged_once: set[str] = set()

    def add(self, run: ResponseContext, action: str, detail: str) -> None:
        """Record an action at the step of `run`."""
        self.attempts = [*self.attempts[-MAX_ATTEMPTS + 1 :], Attempt(run.step, action, detail)]
        if self._repeats.is_due(action, 1 if action == "skip" else SHOWN) and run.loop.is_main_process:
            at = f" at step {run.step}" if run.step >= run.loop.first_step else ""
            logger.warning("gradexplode%s: %s%s", at, detail, self._repeats.note(action))

    def once(self, run: ResponseContext, action: str, detail: str) -> None:
        """Record an action, a refusal or an end, unless the same response logged one of this kind in this incident."""
        key = f"{run.response}/{action}"
        if key not in self._logged_once:
            self._logged_once.add(key)
            self.add(run, action, detail)

    def incident_ended(self) -> None:
        """Allow what was logged by `once` to be logged again, in the next incident."""
        self._logged_once.clear()
