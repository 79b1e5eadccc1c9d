"""Trends of a run before an incident."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.trends import abrupt_step
from tests.diagnose.evidence import NAN, calm, diverged, finding, history


@pytest.mark.parametrize(("last", "step"), [(0.2, 40), (14.5, None)])
def test_a_jump_after_a_large_update_is_not_abrupt(last: float, step: int | None) -> None:
    """Updates are measured now and then only; the one before the jump has made it, or the batch has."""
    values = calm(41)
    values["update_ratio"] = [0.196 if one == 10 else NAN for one in range(41)]
    values["update_ratio"][39], values["loss"][40] = last, 2.7e7
    evidence = diverged(step=39, now=40, findings=(finding("diverging-loss", 40),), history=(history(values),))
    assert abrupt_step(evidence, "loss") == step


@pytest.mark.parametrize(("ratio", "step"), [(0.05, 40), (0.4, None)])
def test_a_jump_among_disruptive_updates_is_not_abrupt(ratio: float, step: int | None) -> None:
    """An update that changes the weights by a third of their norm is not ordinary where all are as large."""
    values = {**calm(41), "update_ratio": [ratio] * 41}
    values["loss"][40] = 2.7e7
    evidence = diverged(step=39, now=40, findings=(finding("diverging-loss", 40),), history=(history(values),))
    assert abrupt_step(evidence, "loss") == step


@pytest.mark.parametrize(("measured", "factor", "step"), [(39, 1000.0, 40), (20, 1000.0, None), (20, 2.0, 40)])
def test_a_jump_right_after_a_rise_of_the_rate_is_not_abrupt(measured: int, factor: float, step: int | None) -> None:
    """Unless the update at that rate was measured, and is an ordinary one."""
    values = calm(41)
    values["update_ratio"] = [0.002 if one in (0, measured) else NAN for one in range(41)]
    values["learning_rate"][39:] = [0.01 * factor] * 2
    values["loss"][40] = 2.7e7
    evidence = diverged(step=39, now=40, findings=(finding("diverging-loss", 40),), history=(history(values),))
    assert abrupt_step(evidence, "loss") == step
