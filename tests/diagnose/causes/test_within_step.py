"""A loss that explodes between two evaluations within one step of LBFGS."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.records import Diagnosis, OptimizerFacts
from lightning_gradexplode.records.diagnosis import MIN_CONFIDENCE
from tests.diagnose.evidence import batch, failed, field, operand, operation, reproduced, run


def diagnosis(kind: str = "LBFGS", failed_at: str = "nonfinite-gradient", **group: Any) -> Diagnosis:
    """Return the diagnosis of a run whose loss overflows at step 6, the value of the step being its first loss."""
    square = operation("mean", "inf", inputs=(operand(None, 0.0, 4e37),))
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": 10.0, **group},)),))
    replay = reproduced(square, step=6, loss=float("inf"))
    return diagnose(failed(6, failed_at, run=facts, replay=replay, batch=batch(field())))


def test_the_rate_is_the_cause_without_a_line_search() -> None:
    """The loss at the start of the step was usual; what overflows later was computed with weights that had moved."""
    found = diagnosis()
    assert found.causes[0].kind == "learning-rate"
    assert 'line_search_fn="strong_wolfe"' in found.causes[0].remedies[0]


@pytest.mark.parametrize(
    "facts", [{"line_search_fn": "strong_wolfe"}, {"kind": "SGD"}, {"failed_at": "nonfinite-loss"}], ids=str
)
def test_it_is_not_named_if_something_else_sets_the_length_or_the_first_loss_fails(facts: Any) -> None:
    """With a line search, with an optimizer that evaluates once, or for a step that begins with such a loss."""
    assert "learning-rate" not in [one.kind for one in diagnosis(**facts).causes]


def test_an_overflow_within_the_step_is_only_a_consequence() -> None:
    """It is listed, but not reported as the cause."""
    found = diagnosis(line_search_fn="strong_wolfe")
    assert [one.kind for one in found.causes if one.confidence >= MIN_CONFIDENCE] in ([], ["unknown"])
    assert diagnosis(kind="SGD").causes[0].kind == "forward-overflow"
