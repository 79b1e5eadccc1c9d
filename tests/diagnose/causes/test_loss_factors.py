"""Numbers that the loss is multiplied by."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.causes.loss_factors import raised_factor
from lightning_gradexplode.records import OptimizerFacts
from tests.diagnose.evidence import diverged, growing, history, run

NUMBERS = {
    "grown a thousandfold": ((4.0, 1.0), (4.0, 1e-3), 0.96),
    "grown from nearly nothing": ((4.0, 1e3), (4.0, 1e-1), 0.7),
    "warmed up to one": ((4.0, 1e6), (4.0, 1.0), None),
    "large and constant": ((1e-4,), (1e-4,), None),
    "of another loss": ((1.0,), (1.0, 1e-3), None),
    "not known": (None, (1e-3,), None),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_grows_far_above_one_is_the_cause(name: str) -> None:
    """A warm-up to one, a constant and the terms of another loss are not."""
    first, later, confidence = NUMBERS[name]
    found = raised_factor(diverged(loss_divisors=first, later_loss_divisors=later))
    assert (None if found is None else found.confidence) == confidence


@pytest.mark.parametrize("values", [{"loss_scale": [65536.0] * 12}, {}])
def test_the_factor_of_a_scaler_and_losses_of_several_optimizers_do_not_count(values: dict[str, list[float]]) -> None:
    """A scaler raises its factor in a healthy run; the losses of two optimizers are different ones."""
    sgd = OptimizerFacts("SGD", ({"lr": 0.5},))
    facts = run(optimizers=(sgd,) * (1 if values else 2))
    evidence = diverged(
        loss_divisors=(1.0,), later_loss_divisors=(1e-5,), run=facts, history=(history({**growing(), **values}),)
    )
    assert raised_factor(evidence) is None
