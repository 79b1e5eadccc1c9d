"""Manual optimization: what is logged belongs to the optimizer that steps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runs.agreement import assert_agrees, assert_batches_agree
from tests.runs.models import Manual
from tests.runs.probe import Watched
from tests.runs.test_modes import scaler


@pytest.mark.parametrize("toggled", [False, True])
@pytest.mark.parametrize("optimizers", [1, 2, 3])
def test_steps_of_several_optimizers_are_measured_apart(optimizers: int, toggled: bool) -> None:
    """Each step of each optimizer is measured, of its own parameters only; a batch is logged once."""
    run = Watched(Manual(optimizers, toggled), max_steps=4 * optimizers)
    assert_batches_agree(run, 4, 4 * optimizers)


@pytest.mark.parametrize("optimizers", [1, 2])
def test_several_steps_of_an_optimizer_per_batch(optimizers: int) -> None:
    """Of an optimizer that steps twice a batch the last step is logged."""
    run = Watched(Manual(optimizers, repeats=2), max_steps=6 * optimizers)
    assert_batches_agree(run, 3, 6 * optimizers)


def test_steps_that_a_gradient_scaler_leaves_out() -> None:
    """An overflow in the first of an optimizer's two steps of a batch does not hide the second one."""
    run = Watched(Manual(1, repeats=2), plugins=[scaler(2.0**24)], max_steps=12)
    assert_batches_agree(run, 6, 12)
    assert {truth.stepped for truth in run.probe.truths} == {True, False}


@pytest.mark.parametrize(
    ("returns", "known"),
    [
        (lambda loss: None, False),
        (lambda loss: {"score": 1.0}, False),
        (lambda loss: {"loss": loss}, True),
        (lambda loss: loss, True),
    ],
    ids=["nothing", "no loss", "loss in a dictionary", "loss"],
)
def test_what_training_step_returns(returns: Any, known: bool) -> None:
    """Without a loss the signs of the loss are silent, and the rest goes on."""
    run = Watched(Manual(1, returns=returns), max_steps=4)
    assert_agrees(run, 4)
    assert [record.loss is not None for record in run.probe.records] == [known] * 4
