"""Several responses, one after the other: the next one acts when those before it did not help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.respond.base import Response, ResponseContext

CALM = 20
"""So many steps without a critical finding end an episode; the next one begins with the first response again."""


class ResponseChain:
    """The responses of a run, in their order.

    At a critical finding they are asked in turn, from the one that acted last in this episode on, until one acts.

    Args:
        responses: In the order in which they act.
    """

    def __init__(self, responses: Sequence[Response]) -> None:
        self.responses = tuple(responses)
        self._place = 0
        self._calm = 0
        self._adding = self._that_have("gradients_ready")
        self._stepping = self._that_have("step_begins")
        self._looking_back = self._that_have("batch_ended")
        self._logging = self._that_have("scalars")

    def _that_have(self, hook: str) -> list[Response]:
        """List the responses that use a hook, so that those that do not cost nothing."""
        return [one for one in self.responses if getattr(type(one), hook) is not getattr(Response, hook)]

    @property
    def adds_gradients(self) -> bool:
        """Whether any response may want to add to the gradients."""
        return bool(self._adding)

    @property
    def looks_back(self) -> bool:
        """Whether there is anything to do at the end of a batch in which nothing critical was found."""
        return bool(self._looking_back) or self._place > 0

    def started(self, run: ResponseContext) -> None:
        """Begin a fit."""
        for response in self.responses:
            response.started(run)

    def gradients_ready(self, run: ResponseContext, weight: float) -> None:
        """Let responses add to the gradients."""
        for response in self._adding:
            response.gradients_ready(run, weight)

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> None:
        """Ask the responses in turn until one acts."""
        self._calm = 0
        for place in range(self._place, len(self.responses)):
            if self.responses[place].respond(findings, run) is not False:
                self._place = place
                return

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step."""
        for response in self._stepping:
            response.step_begins(optimizer)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what was prepared, in reverse order."""
        for response in reversed(self._stepping):
            response.step_ended(optimizer)

    def batch_ended(self, run: ResponseContext) -> None:
        """Look back at a batch."""
        self._calm = self._calm + 1 if run.severity < Severity.CRITICAL else 0
        if self._calm >= CALM:
            self._place = 0
        for response in self._looking_back:
            response.batch_ended(run)

    def ended(self) -> None:
        """End a fit."""
        for response in reversed(self.responses):
            response.ended()

    def scalars(self) -> dict[str, float]:
        """Give what the responses log, by name without ``gradexplode/``."""
        return {name: value for response in self._logging for name, value in response.scalars().items()}

    def state_dict(self) -> dict[str, Any]:
        """Give where the episode stands, and the responses' states."""
        states = [{"kind": _kind(one), "state": one.state_dict()} for one in self.responses]
        return {"place": self._place, "calm": self._calm, "responses": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; of another chain, what fits."""
        saved = state["responses"]
        if [entry["kind"] for entry in saved] == [_kind(one) for one in self.responses]:
            self._place, self._calm = state["place"], state["calm"]
        for response, entry in zip(self.responses, saved, strict=False):
            if entry["kind"] == _kind(response):
                response.load_state_dict(entry["state"])


def _kind(response: Response) -> str:
    return type(response).__qualname__
