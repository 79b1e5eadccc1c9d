"""Properties of optimizers from their classes and hyperparameters."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.optimizers import usual_rate
from lightning_gradexplode.records import OptimizerFacts, RunFacts


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["AdamW"], ("AdamW", 0.01)),
        (["Adam", "Adam"], ("Adam", 0.01)),
        (["Adam", "SGD"], ("SGD", 0.5)),
        (["NaturalGradients", "Adam"], None),
        (["Shampoo"], None),
        ([], None),
    ],
)
def test_of_several_optimizers_the_highest_usual_rate_counts(
    kinds: list[str], expected: tuple[str, float] | None
) -> None:
    """A rate of one of them is not compared with what is usual for another; natural gradients take rates of 0.1."""
    run = RunFacts(optimizers=tuple(OptimizerFacts(kind, ({"lr": 0.1},)) for kind in kinds))
    assert usual_rate(run) == expected
