"""Overflows of an exponential function that something evident has caused all at once."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.records import Evidence
from tests.diagnose.evidence import (
    NAN,
    batch,
    calm,
    failed,
    field,
    finding,
    history,
    kinds,
    operand,
    operation,
    parameter,
    reproduced,
    run,
)

TAKES_LARGE = reproduced(operation("exp", "inf", inputs=[operand(187.0, greatest=187.0)], rows=(5,)))


def raised_at(step: int, to: float) -> Evidence:
    """Return the evidence of a rate that rises at a step, and of a loss that is NaN at step 41."""
    values = calm(42)
    values["learning_rate"][step:] = [to] * (42 - step)
    values["loss"][41] = values["grad_norm"][41] = values["weight_norm"][41] = NAN
    found = (finding("nonfinite-loss", 41, value=NAN),)
    return Evidence(41, 41, found, run(), (history(values),), replay=TAKES_LARGE)


@pytest.mark.parametrize(
    ("step", "to", "first"),
    [
        (40, 1.0, "learning-rate-jump"),
        (39, 1.0, "learning-rate-jump"),
        (20, 1.0, "forward-overflow"),
        (40, 0.02, "forward-overflow"),
    ],
    ids=["one step before", "two steps before", "long before", "a small rise"],
)
def test_a_rate_that_was_raised_many_fold_right_before_is_the_cause(step: int, to: float, first: str) -> None:
    """The exponential function is the first to fail after any update that is far too large."""
    assert kinds(diagnose(raised_at(step, to)))[0] == first


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({"outlier_rows": (5,), "greatest": 1e8, "row_size": 1.0}, "outlier-batch"),
        ({"outlier_rows": (5,), "greatest": 1e8, "usual_greatest": 1e8, "row_size": 1.0}, "outlier-batch"),
        ({"outlier_rows": (7,), "greatest": 1e8, "row_size": 1.0}, "forward-overflow"),
        ({"outlier_rows": (5,), "greatest": 5e3, "row_size": 0.5}, "outlier-batch"),
        ({"outlier_rows": (5,), "greatest": 60.0, "row_size": 1.0}, "forward-overflow"),
    ],
    ids=["new", "seen before", "in another row", "a few thousand", "not far"],
)
def test_a_row_far_outside_of_the_others_is_the_cause_where_only_it_overflows(
    facts: dict[str, Any], first: str
) -> None:
    """Its values have made the argument so large."""
    assert kinds(diagnose(failed(25, replay=TAKES_LARGE, batch=batch(field("[0]", **facts)))))[0] == first


@pytest.mark.parametrize(
    ("scale", "gain", "last", "first"),
    [
        (1.0, 65.0, 0.58, "initialization"),
        (1.0, 12.0, 12.0, "initialization"),
        (4e5, 0.58, 0.58, "unscaled-data"),
        (300.0, 0.58, 0.58, "unscaled-data"),
        (1.0, 12.0, 0.58, "forward-overflow"),
    ],
    ids=["a weight", "two weights", "inputs", "smaller inputs", "a weight that is not so large"],
)
def test_a_first_loss_overflows_because_of_the_scale_of_weights_or_inputs(
    scale: float, gain: float, last: float, first: str
) -> None:
    """Before any update there is nothing else that can have made the argument large."""
    known = {"least": -scale, "greatest": scale, "std": 0.6 * scale, "usual_least": None, "usual_greatest": None}
    facts = run(parameters=(parameter("body.weight", (32, 8), gain), parameter("head.weight", (1, 32), last)))
    evidence = failed(0, replay=TAKES_LARGE, run=facts, batch=batch(field("[0]", row_size=scale, **known)))
    assert kinds(diagnose(evidence))[0] == first
