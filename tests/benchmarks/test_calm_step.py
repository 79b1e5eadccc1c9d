"""How much Python a calm step is: what it costs on a network so small that arithmetic takes no time."""

from __future__ import annotations

from benchmarks.calm_step import calls_of_a_calm_step
from benchmarks.overhead_models import models


def test_a_calm_step_makes_few_calls() -> None:
    """Whoever adds to every step of every run has to raise these numbers, and to say what for."""
    calls = calls_of_a_calm_step(models()["narrow MLP"]())
    assert 60 < len(calls) <= 97  # three for backward passes, which one class counts whatever the number of optimizers
    # Of one concept each; the base class of training loops has been one since it reads the scale of a gradient scaler.
    assert len({file for _, file, _ in calls}) <= 30
