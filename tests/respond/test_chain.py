"""Several responses, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode.records import Finding
from lightning_gradexplode.respond import (
    ReduceLearningRate,
    Response,
    ResponseChain,
    ResponseContext,
    Rollback,
    SaveCheckpoint,
    SkipStep,
    StopTraining,
    Warn,
    WeightPenalty,
)
from tests.detect.steps import through_checkpoint
from tests.respond.loops import CapableLoop, JoinedLoop, PlainLoop, context, finding


class Noted(Response):
    """Notes when it is called, and acts a number of times.

    Args:
        name: What it notes.
        notes: Where.
        acts: How often it acts; it returns False afterwards.
    """

    def __init__(self, name: str, notes: list[str], acts: int) -> None:
        self.name, self.notes, self.acts = name, notes, acts

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool | None:
        """Act, or not; acting returns None as a user's own response would."""
        self.notes.append(self.name)
        self.acts -= 1
        return None if self.acts >= 0 else False


class Broken(Response):
    """Raises in one of its methods."""

    def __init__(self, method: str) -> None:
        self.method = method

    def _maybe_raise(self, method: str) -> None:
        if self.method == method:
            raise ValueError("broken on purpose")

    def started(self, run: ResponseContext) -> None:
        """Begin."""
        self._maybe_raise("started")

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> bool:
        """Do nothing."""
        self._maybe_raise("respond")
        return False

    def gradients_ready(self, run: ResponseContext, weight: float) -> None:
        """Add nothing."""
        self._maybe_raise("gradients_ready")

    def step_begins(self, optimizer: Any) -> None:
        """Do nothing."""
        self._maybe_raise("step_begins")

    def batch_ended(self, run: ResponseContext) -> None:
        """Do nothing."""
        self._maybe_raise("batch_ended")

    def scalars(self) -> dict[str, float]:
        """Return nothing."""
        self._maybe_raise("scalars")
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        self._maybe_raise("state_dict")
        return {}


FINDINGS = [finding()]


def test_the_next_response_acts_when_one_gives_up() -> None:
    """Within an incident the chain goes on from the response that acted last; in the next one it begins anew."""
    notes: list[str] = []
    chain = ResponseChain([Noted("a", notes, 1), Noted("b", notes, 2), Noted("c", notes, 9)])
    for _ in range(4):
        chain.respond(FINDINGS, context())
    assert notes == ["a", "a", "b", "b", "b", "c"]
    chain.incident_ended()
    chain.respond(FINDINGS, context())
    assert notes[6:] == ["a", "b", "c"]


def test_the_place_in_a_chain_goes_through_a_checkpoint() -> None:
    """The place in the chain is kept, and a state of another chain is no obstacle."""
    notes: list[str] = []
    one = ResponseChain([Noted("a", notes, 0), Noted("b", notes, 9)])
    one.respond(FINDINGS, context())
    other = ResponseChain([Noted("c", notes, 9), Noted("d", notes, 9)])
    assert other.load_state_dict(through_checkpoint(one.state_dict())) == []
    other.respond(FINDINGS, context())
    assert notes == ["a", "b", "d"]
    changed = ResponseChain([SkipStep(), Rollback()])
    assert changed.load_state_dict(through_checkpoint(one.state_dict())) == ["SkipStep", "Rollback"]


@pytest.mark.parametrize("state", [{}, {"place": "x", "responses": 3}, {"responses": [None, {"kind": "SkipStep"}]}])
def test_a_state_that_does_not_fit_starts_fresh_and_is_reported(state: dict[str, Any]) -> None:
    """A missing, unknown or corrupt state is named, and the chain works."""
    chain = ResponseChain([SkipStep(), StopTraining()])
    assert "SkipStep" in chain.load_state_dict(state)
    run = context()
    chain.respond(FINDINGS, run)
    assert run.update_is_held_back


def test_a_response_without_a_state_has_none_to_miss() -> None:
    """Only what could have been restored is named, when a run goes on with other responses."""
    before = through_checkpoint(ResponseChain([Warn()]).state_dict())
    assert ResponseChain([StopTraining(), SkipStep()]).load_state_dict(before) == ["SkipStep"]
    assert ResponseChain([Warn()]).load_state_dict(through_checkpoint(ResponseChain([SkipStep()]).state_dict())) == []


def test_states_of_responses_load_by_themselves_part_by_part() -> None:
    """One corrupt number of one response starts fresh; the others are kept."""
    chain = ResponseChain([SkipStep(most_in_a_row=9), ReduceLearningRate()])
    for step in (3, 4):
        chain.respond(FINDINGS, context(step=step))
    state = through_checkpoint(chain.state_dict())
    state["responses"][0]["state"]["_in_a_row"] = "two"
    other = ResponseChain([SkipStep(most_in_a_row=9), ReduceLearningRate()])
    assert other.load_state_dict(state) == ["SkipStep._in_a_row"]
    loaded = other.state_dict()["responses"][0]["state"]
    assert loaded == {"_skipped": 2, "_in_a_row": 0, "_resting": 0, "_calm": 0, "_is_of_batch": True}


def test_states_of_0_1_0_load() -> None:
    """Counts, rates and the place in the chain are those of a checkpoint of the first release."""
    old = [
        {"kind": "SkipStep", "state": {"skipped": 7, "in_a_row": 1, "resting": 0}},
        {"kind": "ReduceLearningRate", "state": {"rate": 0.25, "calm": 3, "budget": {"used": 2, "last": 40}}},
        {"kind": "Rollback", "state": {"budget": {"used": 1, "last": 30}, "rate": 0.5, "in_a_row": 1}},
        {"kind": "SaveCheckpoint", "state": {"budget": {"used": 1, "last": 30}}},
        {"kind": "WeightPenalty", "state": {"since": 12, "calm": 4}},
        {"kind": "StopTraining", "state": {}},
    ]
    chain = ResponseChain(
        [SkipStep(), ReduceLearningRate(), Rollback(), SaveCheckpoint(), WeightPenalty(), StopTraining()]
    )
    fresh = chain.load_state_dict({"place": 1, "calm": 3, "responses": old})
    newer = [
        f"Rollback.{name}"
        for name in ("_highest_rate", "_first_cut", "_held_back", "_has_updates", "_last_step", "_losses")
    ]
    newer += ["SkipStep._calm", "SkipStep._is_of_batch"]
    assert sorted(fresh) == sorted(["Rollback._states", *newer, "SaveCheckpoint._states"])  # not saved then
    assert chain.state_dict()["place"] == 1
    assert chain.scalars() == {
        "learning_rate_factor": 0.25,
        "rollbacks": 1.0,
        "rollback_rate_factor": 0.5,
        "explosion_checkpoints": 1.0,
        "weight_penalty": 1.0,
    }


@pytest.mark.parametrize("method", ["started", "respond", "gradients_ready", "step_begins", "batch_ended", "scalars"])
def test_a_response_that_raises_is_switched_off_by_itself(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line names it, and the response behind it acts."""
    notes: list[str] = []
    loop = PlainLoop()
    chain = ResponseChain([Broken(method), Noted("b", notes, 99)])
    for _ in range(3):
        chain.started(context(loop))
        chain.gradients_ready(context(loop), 1.0)
        chain.step_begins(loop.optimizer)
        chain.step_ended(loop.optimizer)
        chain.respond(FINDINGS, context(loop))
        chain.batch_ended(context(loop))
        chain.scalars()
        assert [entry["kind"] for entry in chain.state_dict()["responses"]] == ["Broken", "Noted"]
    chain.ended()
    assert notes == ["b"] * 3
    lines = [line for line in caplog.messages if "switched off" in line]
    assert len(lines) == 3  # one in each fit
    assert all("Broken" in line and "broken on purpose" in line for line in lines)


@pytest.mark.parametrize("responses", [["a"], [SkipStep(most_in_a_row=2)], [ReduceLearningRate(most=1, cooldown=1)]])
def test_no_nonfinite_update_is_taken_and_training_stops_at_the_end_of_the_chain(
    responses: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Every update is held back, and once no response acts any more training is stopped, with the reason."""
    loop = CapableLoop()
    chain = ResponseChain([Noted("a", [], 0) if one == "a" else one for one in responses])
    chain.started(context(loop))
    for step in range(3, 9):
        run = context(loop, step=step, grad_norm=float("nan"))
        chain.respond([finding(step=step)], run)
        chain.batch_ended(context(loop, step=step, severity=3))
        assert run.update_is_held_back, step
    assert loop.should_stop
    assert sum("training is stopped" in line for line in caplog.messages) == 1
    assert "nonfinite-gradient in layer.weight" in caplog.text


@pytest.mark.parametrize("response", [Warn(), SaveCheckpoint(), WeightPenalty()])
def test_a_run_without_a_remedy_is_not_changed(response: Response) -> None:
    """Where no response acts against explosions, nothing is held back and training goes on."""
    loop = CapableLoop()
    chain = ResponseChain([response])
    run = context(loop, grad_norm=float("nan"))
    chain.guard(run)
    assert not run.update_is_held_back
    assert not chain.has_remedy


def test_finite_updates_are_taken_again_when_skipping_has_reached_its_limit() -> None:
    """A finite gradient is not held back for ever by a response that gave up."""
    loop = CapableLoop()
    chain = ResponseChain([SkipStep(most_in_a_row=2)])
    held = []
    for step in range(4):
        run = context(loop, step=step)
        chain.respond([finding("gradient-spike", step)], run)
        held.append(run.update_is_held_back)
    assert held == [True, True, False, False]
    assert not loop.should_stop


def test_the_reason_of_a_skipped_update_names_response_and_finding() -> None:
    """The record of the step can show who held it back and why."""
    run = context()
    ResponseChain([SkipStep()]).respond(FINDINGS, run)
    assert run.skipped_by == "SkipStep: nonfinite-gradient in layer.weight"
    guarded = context(grad_norm=float("inf"))
    ResponseChain([SkipStep()]).guard(guarded)
    assert guarded.skipped_by == "on_explosion: the gradients are not finite"


def test_ten_thousand_actions_are_logged_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """The lines and the memory of a long run are bounded."""
    chain = ResponseChain([SkipStep()])
    for step in range(0, 10_000, 25):
        chain.respond([finding(step=step)], context(step=step))
        chain.batch_ended(context(step=step + 1))
    assert 3 <= len(caplog.messages) <= 8
    assert len(chain.log.attempts) == 64
    assert {attempt.action for attempt in chain.log.attempts} == {"skip"}


def test_a_response_that_fails_on_another_process_is_switched_off_on_this_one_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Failures are exchanged before anyone goes on, so that no replica acts alone."""
    loop = JoinedLoop(lambda mine: np.array([1.0, 0.0, 0.0]) if len(mine) == 3 else np.zeros(1))
    notes: list[str] = []
    chain = ResponseChain([Noted("a", notes, 9)])
    chain.started(context(loop))
    for _ in range(2):
        chain.respond(FINDINGS, context(loop))
    assert notes == ["a"]
    assert "Noted is switched off for this fit: it failed on another process" in caplog.text


def test_an_update_that_another_process_holds_back_is_held_back_here_too() -> None:
    """A response that decides by what only one process sees acts on all of them."""
    loop = JoinedLoop(lambda mine: np.array([0.0, 1.0, 1.0]) if len(mine) == 3 else np.zeros(1))
    notes: list[str] = []
    chain = ResponseChain([Noted("a", notes, 0), Noted("b", notes, 9)])
    chain.started(context(loop))
    run = context(loop)
    chain.respond(FINDINGS, run)
    assert run.update_is_held_back
    assert notes == ["a"]
