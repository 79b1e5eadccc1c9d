"""What is advised where the gain per time step compounds."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose.remedies.recurrence import recurrence_remedies
from lightning_gradexplode.records import Experiments, StartTrial
from tests.diagnose.evidence import diverged, parameter

MATRIX = parameter("drift", (8, 8), module_kind="Equation")


def test_the_start_that_was_seen_to_work_is_advised_with_what_was_seen() -> None:
    """The other one, with which the gradient is as large as before, is not."""
    starts = (StartTrial("drift", "orthogonal", 1e9, 1e12), StartTrial("drift", "small", 0.15, 5.2))
    advice = recurrence_remedies(diverged(experiments=Experiments(starts=starts)), MATRIX, False, None)
    assert "nn.init.normal_(model.drift, std=0.01)" in advice[0]
    assert "tried on this batch: the loss is 0.15 and the gradient norm 5.2" in advice[0]
    assert not any("orthogonal_" in one for one in advice)


def test_an_orthogonal_start_is_advised_where_none_was_tried() -> None:
    """As it is by rule, without a claim that it was tried."""
    other = Experiments(starts=(StartTrial("another", "small", 0.1, 1.0),))
    for evidence in (diverged(), replace(diverged(), experiments=other)):
        advice = recurrence_remedies(evidence, MATRIX, False, None)
        assert "nn.init.orthogonal_(model.drift, gain=0.9)" in advice[0]
        assert "tried" not in advice[0]


def test_a_small_start_is_advised_for_a_part_of_a_step() -> None:
    """A matrix of more columns than rows keeps no scale by itself, and the gain of a step is in proportion to it."""
    second = parameter("field.second.weight", (3, 64))
    advice = recurrence_remedies(diverged(), second, False, None)
    assert "nn.init.normal_(model.field.second.weight, std=0.01)" in advice[0]
    assert not any("orthogonal_" in one for one in advice)


def test_no_start_is_advised_where_none_that_was_tried_works() -> None:
    """Clipping, a bound or shorter sequences are left."""
    starts = (StartTrial("drift", "orthogonal", 1e9, 1e12), StartTrial("drift", "small", 1e5, 1e7))
    advice = recurrence_remedies(diverged(experiments=Experiments(starts=starts)), MATRIX, False, 200)
    assert not any("nn.init" in one for one in advice)
    assert any("shorter parts" in one for one in advice)


def test_no_start_is_advised_for_one_of_several_weights_that_are_applied_together() -> None:
    """Their gains add up, so that the start of one does not bound that of a step."""
    advice = recurrence_remedies(diverged(), MATRIX, False, None, is_alone=False)
    assert "state = state + update / steps" in advice[0]
    assert not any("nn.init" in one for one in advice)
