"""A negative log-likelihood of plain outputs."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose import diagnose_calm
from lightning_gradexplode.diagnose.causes.plain_outputs import plain_outputs
from lightning_gradexplode.records import Evidence, LossTerm
from tests.diagnose.evidence import calm, history, operand, run


def evidence(loss: list[float], least: float, greatest: float) -> Evidence:
    """Return the evidence of a run whose first negative log-likelihood took numbers of a range."""
    values = {**calm(len(loss)), "loss": loss}
    first = LossTerm("nll_loss", (operand(least=least, greatest=greatest), operand(least=0, greatest=9)))
    return Evidence(len(loss), len(loss), (), run(), (history(values),), first_losses=(first,))


FALLING = [0.1 - 0.02 * step for step in range(60)]


@pytest.mark.parametrize(
    ("loss", "least", "greatest", "is_named"),
    [
        (FALLING, -0.4, 0.3, True),
        (FALLING, 0.5, 9.0, True),
        (FALLING, -4.0, 0.0, False),
        (FALLING, 0.0, 1.0, False),
        ([1.0] * 60, -0.4, 0.3, False),
    ],
    ids=["outputs", "positive outputs", "logarithms", "probabilities", "no loss below zero"],
)
def test_outputs_of_both_signs_are_no_logarithms(
    loss: list[float], least: float, greatest: float, is_named: bool
) -> None:
    """Logarithms of probabilities are at most zero; probabilities give a loss that is bounded by minus one."""
    assert bool([*plain_outputs(evidence(loss, least, greatest))]) is is_named


def test_a_run_without_an_incident_shows_them() -> None:
    """Such a loss falls steadily, which no detector takes for an explosion."""
    found = diagnose_calm(evidence(FALLING, -0.4, 0.3))
    assert found is not None
    assert "log_softmax" in found.remedies[0]
