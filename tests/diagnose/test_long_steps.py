"""Steps of gradient descent that go too far."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.long_steps import overlong_step
from lightning_gradexplode.records import Evidence, OptimizerFacts
from tests.diagnose.evidence import NAN, calm, diverged, history, run


def evidence(rate: float, losses: list[float], norms: list[float], kind: str = "SGD") -> Evidence:
    """Return the evidence of a run with some losses and gradients."""
    values = {**calm(len(losses), rate=rate), "loss": losses, "grad_norm": norms}
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": rate},)),))
    return diverged(now=len(losses) - 1, history=(history(values),), run=facts)


LOSSES = [40.0, 39.0, 60.0, 4e5, NAN]
NORMS = [10.0, 12.0, 100.0, 1e5, NAN]


def test_the_first_step_that_goes_too_far_is_described() -> None:
    """At a rate of 0.1, a gradient of 100 changes a loss of 60 by 17 times that, and the loss rises."""
    found = overlong_step(evidence(0.1, LOSSES, NORMS))
    assert found is not None
    assert "At step 2 the loss was 60, and the update changes it by 16.7 times that" in found
    assert "rose to 4e+05" in found


@pytest.mark.parametrize(
    ("rate", "losses", "norms", "kind"),
    [
        (1e-3, LOSSES, NORMS, "SGD"),
        (0.1, [40.0, 39.0, 60.0, 20.0, 10.0], NORMS, "SGD"),
        (0.1, [-40.0, -39.0, -60.0, -4e5, NAN], NORMS, "SGD"),
        (0.1, [40.0, 4e3, 6e4, 4e5, NAN], NORMS, "SGD"),
        (0.1, LOSSES, NORMS, "Adam"),
    ],
    ids=["short steps", "the loss falls", "a loss below zero", "a loss that has exploded before", "Adam"],
)
def test_other_steps_are_not(rate: float, losses: list[float], norms: list[float], kind: str) -> None:
    """The length of a step is the rate times the norm only of gradient descent; a loss below zero is no scale."""
    assert overlong_step(evidence(rate, losses, norms, kind)) is None


@pytest.mark.parametrize(("curvature", "is_named"), [(30.0, True), (15.0, False)])
def test_a_parabola_shows_where_a_step_is_too_long(curvature: float, is_named: bool) -> None:
    """Gradient descent on a parabola diverges from a rate of two divided by the curvature on: 0.1 * 30 is above it."""
    place, losses, norms = 1.0, [], []
    for _ in range(12):
        losses.append(0.5 * curvature * place**2)
        norms.append(abs(curvature * place))
        place -= 0.1 * curvature * place
    assert (overlong_step(evidence(0.1, losses, norms)) is not None) is is_named
