"""Stopping, raising, and doing nothing."""

from __future__ import annotations

import pytest

from lightning_gradexplode.respond import ExplosionError, RaiseError, ResponseChain, StopTraining, Warn
from tests.respond.loops import CapableLoop, PlainLoop, context, finding

FINDINGS = [finding("nonfinite-loss"), finding("gradient-growth")]


def test_a_warning_leaves_the_run_alone() -> None:
    """Warn neither stops the run nor holds back the update."""
    loop = CapableLoop()
    run = context(loop)
    assert Warn().respond(FINDINGS, run) is False
    assert not loop.should_stop
    assert not run.update_is_held_back


@pytest.mark.parametrize("before_update", [True, False])
def test_stopping_ends_the_run_and_logs_the_reason(before_update: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The update is held back where it is not too late for that, and one line says why training ends."""
    loop = CapableLoop()
    chain = ResponseChain([StopTraining()])
    for step in (3, 4, 5):
        run = context(loop, before_update, step=step)
        chain.respond(FINDINGS, run)
        assert run.update_is_held_back == before_update
    assert loop.should_stop
    (line,) = caplog.messages
    assert "training is stopped" in line
    assert "nonfinite-loss in layer.weight" in line


def test_stopping_tells_what_keeps_the_run_going(caplog: pytest.LogCaptureFixture) -> None:
    """With ``min_epochs`` training goes on for a while, and the line says until when."""
    ResponseChain([StopTraining()]).respond(FINDINGS, context(CapableLoop("min_epochs=5")))
    assert "until min_epochs=5 is reached" in caplog.text


def test_a_loop_that_cannot_stop_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Updates are held back, and one line says that the loop has to be ended by its owner."""
    chain = ResponseChain([StopTraining()])
    for step in (3, 4):
        run = context(PlainLoop(), step=step)
        chain.respond(FINDINGS, run)
        assert run.update_is_held_back
    (line,) = caplog.messages
    assert "cannot be stopped" in line


def test_raising_tells_every_finding() -> None:
    """Raising ends the run with an error that has sign, place, step and message of each finding."""
    with pytest.raises(ExplosionError) as raised:
        ResponseChain([RaiseError()]).respond(FINDINGS, context())
    for word in ("nonfinite-loss", "gradient-growth", "layer.weight", "step 3", "on purpose"):
        assert word in str(raised.value)
    assert raised.value.findings == FINDINGS
