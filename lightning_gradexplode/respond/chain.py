"""Several responses in their order: the next one acts when those before it did not help."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.measure.parameters import held_by
from lightning_gradexplode.part_guard import PartGuard, is_own
from lightning_gradexplode.records import Finding
from lightning_gradexplode.records.text import few
from lightning_gradexplode.respond.action_log import ActionLog
from lightning_gradexplode.respond.base import ExplosionError, Response, ResponseContext

_HOOKS = ("gradients_ready", "step_begins", "batch_ended", "scalars")

_CHANGING = ("gradients_ready", "step_begins", "batch_ended")
"""Hooks that may change the run."""


class ResponseChain:
    """The responses of a run.

    At a critical finding they respond in turn, beginning with the one that acted last in the incident, until one acts.
    A response that raises, or whose result has the wrong type, is switched off on all processes, which is logged with
    its name; the others continue.

    Args:
        responses: In the order in which they act.

    Attributes:
        has_remedy: Whether any response acts against explosions; then no non-finite update is applied to the weights.
    """

    def __init__(self, responses: Sequence[Response]) -> None:
        self.responses = tuple(responses)
        self.has_remedy = any(one.is_remedy for one in responses)
        self._only_warns = all(one.only_warns for one in responses)
        self.log = ActionLog()
        self._place = 0
        self._guards = self._new_guards()
        self._off: set[int] = set()
        self._run: ResponseContext | None = None
        self._users = {hook: [i for i, one in enumerate(responses) if _overrides(one, hook)] for hook in _HOOKS}

    def _new_guards(self) -> list[PartGuard]:
        return [PartGuard(one, "response", passes=(ExplosionError,)) for one in self.responses]

    @property
    def adds_gradients(self) -> bool:
        """Whether any response may add to the gradients."""
        return bool(self._users["gradients_ready"])

    @property
    def uses_batch_end(self) -> bool:
        """Whether there is anything to do at the end of a batch in which nothing critical was found."""
        return bool(self._users["batch_ended"])

    def started(self, run: ResponseContext) -> None:
        """Begin a fit."""
        self.log, self._place, self._guards, self._off = ActionLog(), 0, self._new_guards(), set()
        run.action_log, self._run = self.log, run
        for place, response in enumerate(self.responses):
            self._guards[place].call(response.started, run, otherwise=None)
            self._fails_on_some(place, run)

    def gradients_ready(self, run: ResponseContext, weight: float) -> None:
        """Call the responses that add to the gradients."""
        self._call_all("gradients_ready", run, weight)

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> None:
        """Call the responses in turn until one acts; then hold back the update if it is not finite.

        Where none acts, and the update or the weights are not finite, training is stopped.
        """
        run.action_log, run.findings = self.log, findings
        acted = False
        for place in range(self._place, len(self.responses)):
            if place not in self._off and self._acts(place, findings, run):
                self._place, acted = place, True
                break
        run.response = "on_explosion"
        is_lost = _is_nonfinite(run) or (not run.before_update and any(f.sign == "nonfinite-weight" for f in findings))
        if self.has_remedy and is_lost and not acted and not run.update_is_held_back:
            run.stop("no response acts any more")
        self.guard(run)

    def guard(self, run: ResponseContext) -> None:
        """Hold back an update that is not finite, if any response is a remedy.

        Call it before each update with non-finite gradients, also if there is no finding.
        """
        if self.has_remedy and _is_nonfinite(run):
            run.hold_back_update("the gradients are not finite")

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step."""
        self._call_all("step_begins", optimizer)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what was prepared, in reverse order."""
        for place in reversed(self._users["step_begins"]):
            self._guards[place].call(self.responses[place].step_ended, optimizer, otherwise=None, always=True)

    def batch_ended(self, run: ResponseContext) -> None:
        """Finish a batch."""
        run.action_log = self.log
        self._call_all("batch_ended", run)

    def log_buffers(self, run: ResponseContext, restored: Sequence[str], nonfinite: Sequence[str]) -> None:
        """Log which buffers a forward pass made NaN or infinite, and whether they could be restored."""
        run.action_log, run.response = self.log, "on_explosion"
        if restored:
            run.log_action("buffers", f"{few(restored)} were not finite after the forward pass and are restored")
        if nonfinite:
            lines = f"{few(nonfinite)} are not finite after the forward pass, and there is no copy to restore them from"
            run.log_action("buffers-lost", lines, once=True)

    def incident_ended(self) -> None:
        """Begin with the first response again at the next critical finding."""
        self._place = 0
        self.log.incident_ended()

    def ended(self) -> None:
        """End a fit."""
        self._run = None
        for guard, response in zip(reversed(self._guards), reversed(self.responses), strict=True):
            guard.call(response.ended, otherwise=None, always=True)

    def scalars(self) -> dict[str, float]:
        """Return what the responses log, by name without ``gradexplode/``."""
        values: dict[str, float] = {}
        for place in self._users["scalars"]:
            values |= self._guards[place].call(_scalars, self.responses[place], otherwise=dict[str, float]())
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the chain, and the states of those responses whose state can be read."""
        states = [{"kind": guard.name, "state": guard.state_dict()} for guard in self._guards]
        return {"place": self._place, "responses": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what `state_dict` returned, of this or of another chain.

        Returns:
            Names of the responses, or of their parts, that start fresh because nothing in the state fits them.
        """
        saved = [entry if isinstance(entry, Mapping) else {} for entry in _list(state, "responses")]
        kinds, place = [entry.get("kind") for entry in saved], state.get("place")
        if kinds == [guard.name for guard in self._guards] and isinstance(place, int):
            self._place = min(max(place, 0), len(self.responses) - 1)
        fresh: list[str] = []
        for guard in self._guards:
            found = next((entry for entry in saved if entry.get("kind") == guard.name), None)
            if found is None:
                fresh += [guard.name] if guard.state_dict() else []  # one without a state has nothing to restore
                continue
            saved.remove(found)
            fresh += guard.load_state_dict(found.get("state"))
        return fresh

    def _acts(self, place: int, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Call one response, and return whether it acted, on any process."""
        guard = self._guards[place]
        run.response = guard.name
        acted = guard.call(_respond, self.responses[place], tuple(findings), run, otherwise=False)
        if self._only_warns:  # the run is not changed, and findings may differ between processes
            return acted
        flags = run.on_all_processes(guard.is_off, acted, run.update_is_held_back)
        failed, acted, held_back = (any(column) for column in zip(*flags, strict=True))
        if held_back:
            run.hold_back_update()
        if failed:
            self._switch_off(place)
        return acted and not failed

    def _fails_on_some(self, place: int, run: ResponseContext) -> bool:
        """Switch a response off that has failed on any process; a collective call.

        Returns:
            Whether it has failed on some of them only.
        """
        failed = [failed for (failed,) in run.on_all_processes(self._guards[place].is_off)]
        if any(failed):
            self._switch_off(place)
        return any(failed) and not all(failed)

    def _switch_off(self, place: int) -> None:
        self._off.add(place)
        self._guards[place].switch_off("it failed on another process")

    def _call_all(self, hook: str, *arguments: Any) -> None:
        for place in self._users[hook]:
            guard = self._guards[place]
            if isinstance(arguments[0], ResponseContext):
                arguments[0].response = guard.name
            guard.call(getattr(self.responses[place], hook), *arguments, otherwise=None)
            if self._run is None or hook not in _CHANGING or place in self._off or is_own(self.responses[place]):
                continue
            if self._fails_on_some(place, self._run) and hook == "gradients_ready":
                # Gradients that one process has changed and another one has not would make their weights differ.
                for parameter in held_by(arguments[0].optimizer):
                    parameter.grad = None


def _respond(response: Response, findings: Sequence[Finding], run: ResponseContext) -> bool:
    """Call a response, and return whether it acted."""
    result: Any = response.respond(findings, run)
    if inspect.isawaitable(result) or inspect.isgenerator(result):
        raise TypeError(f"respond must be a plain method, got one that returns a {type(result).__name__}")
    return result is None or bool(result)


def _scalars(response: Response) -> dict[str, float]:
    return checks.scalars(response.scalars())


def _is_nonfinite(run: ResponseContext) -> bool:
    """Return whether the coming update is not finite, and would be applied."""
    record = run.record
    if record is None or not run.before_update or record.grad_norm is None:
        return False
    return not math.isfinite(record.grad_norm) and not record.scale_adapts


def _overrides(response: Response, hook: str) -> bool:
    return getattr(type(response), hook) is not getattr(Response, hook)


def _list(state: Mapping[str, Any], key: str) -> list[Any]:
    value = state.get(key)
    return list(value) if isinstance(value, (list, tuple)) else []
