"""Operations outside of their domain, as a rule over what a replay has found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.undefined_operation import undefined_operation
from lightning_gradexplode.records import OptimizerFacts, Replay
from tests.diagnose.evidence import (
    NAN,
    batch,
    calm,
    diverged,
    failed,
    field,
    finding,
    history,
    operand,
    operation,
    renamed,
    reproduced,
    run,
)


def test_a_buffer_that_was_infinite_before_the_step_is_the_place() -> None:
    """A class weight of one over a count of zero; leaving out batches would not help."""
    for first in (None, operation("nll_loss_forward", inputs=[operand(), operand(inf_count=1)])):
        replay = Replay("reproduced", first=first, source="buffer", source_name="class_weight")
        found = undefined_operation(failed(0, replay=replay))
        assert found is not None
        assert found.where == "buffer `class_weight`"
        assert "skip" not in " ".join(found.remedies)


def test_a_mask_of_infinities_is_not_the_place() -> None:
    """The softmax that had all its places masked is, and not the buffer that holds the mask."""
    softmax = operation("_softmax", inputs=[operand(inf_count=64)])
    found = undefined_operation(failed(0, replay=Replay("reproduced", first=softmax, source="buffer", source_name="m")))
    assert found is not None
    assert "softmax" in str(found.where)


def test_a_buffer_that_the_step_itself_made_not_finite_is_the_place() -> None:
    """Such as a codebook of moving averages, over no vector; nothing else was not finite before."""
    replay = Replay("not-reproduced", source="buffer", source_name="codebook", loss=float("nan"))
    found = undefined_operation(failed(4, replay=replay))
    assert found is not None
    assert found.where == "codebook"
    assert "clamp(min=1)" in found.remedies[0]
    assert undefined_operation(diverged(replay=replay)) is None


@pytest.mark.parametrize(
    ("optimizer", "growth", "confidence"), [("Adam", 6.0, 0.25), ("Adam", 2.0, 0.5), ("SGD", 6.0, 0.5)]
)
def test_an_operation_that_one_huge_update_came_before_is_not_the_cause(
    optimizer: str, growth: float, confidence: float
) -> None:
    """A rate of 0.3 is high for Adam, which multiplies the weights by it; for gradient descent it is not."""
    quantities = {"loss": [0.7, 0.9, 40.0, NAN], "grad_norm": [0.5, 0.6, 1.0, NAN], "update_ratio": [growth, 0.1, 0.1]}
    quantities |= {"learning_rate": [0.3] * 4, "weight_norm": [8.0, 8.0 * growth, 8.1 * growth]}
    facts = run(optimizers=(OptimizerFacts(optimizer, ({"lr": 0.3},)),))
    replay = reproduced(operation("log", "inf", inputs=[operand(0.0)]))
    found = undefined_operation(failed(3, history=(history(quantities),), run=facts, replay=replay))
    assert found is not None
    assert found.confidence == confidence


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (("sum", "sqrt"), "`sqrt`"),
        (("sum", "hypot", "mean"), "`hypot`"),
        (("pow", "mean"), "`pow`"),
        (("pow", "sum", "sqrt"), "`sqrt` or `pow`"),
        (("acos", "asin", "sqrt", "norm"), "head.bias"),
        (("mul", "sum"), None),
        (("exp", "sum", "log"), "`log`"),
        (("pow", "softmax", "log"), "`log` or `pow`"),
        (("relu", "sum", "log"), None),
        (("exp", "div", "log"), "`log` or `div`"),
        (("div", "softmax", "log"), "`log`"),
    ],
)
def test_the_only_root_is_the_operation_without_a_slope(names: tuple[str, ...], place: str | None) -> None:
    """Where there are two or three such operations all are named, of more none.

    A logarithm is one of them where exponentials can make numbers that are nearly zero, and so is a division.
    """
    gradient = finding("nonfinite-gradient", 4, where="head.bias", value=float("nan"))
    replay = Replay("not-possible", operation_names=names)
    found = undefined_operation(failed(4, "nonfinite-gradient", findings=(gradient,), replay=replay))
    assert (None if found is None else found.where) == place


@pytest.mark.parametrize(("source", "place"), [("parameter", "`sqrt`"), ("batch", None), (None, None)])
def test_weights_that_the_gradients_have_made_nan_leave_the_root_at_fault(source: Any, place: str | None) -> None:
    """The graph of the next loss shows these weights; if it shows anything else, the root is not named."""
    gradient = finding("nonfinite-gradient", 4, where="head.bias", value=float("nan"))
    replay = Replay("reproduced", source=source, source_name="head.bias", operation_names=("sum", "sqrt"))
    found = undefined_operation(failed(4, "nonfinite-gradient", findings=(gradient,), replay=replay))
    assert (None if found is None else found.where) == place


def test_a_factor_that_is_no_data_was_computed_in_the_step() -> None:
    """By a deviation or a sum of zero if no element is finite; with less confidence if some or the first ones are."""
    whole = field("constant in mul", shape=(16,), nan_count=16)
    cases = {
        (whole, 9): 0.5,
        (replace(whole, nan_count=0, inf_count=16), 9): 0.5,
        (replace(whole, nan_count=3, nonfinite_rows=(1, 5, 9)), 9): 0.4,
        (whole, 0): 0.4,
        (replace(whole, shape=(1, 16)), 9): 0.4,
        (renamed(whole, "target of mse_loss"), 9): None,
        (replace(whole, dtype="float16"), 9): None,
    }
    for (taken, step), confidence in cases.items():
        source = Replay("reproduced", source="batch", source_name=taken.name)
        first = diagnose(failed(step, batch=batch(field(), taken), replay=source)).causes[0]
        assert (first.confidence if first.kind == "undefined-operation" else None) == confidence, taken


@pytest.mark.parametrize(
    ("last", "is_named"), [(0.01, True), (4.0, False)], ids=["the loss has fallen", "it has risen"]
)
def test_growth_of_the_weights_in_a_run_that_learns_is_no_divergence(last: float, is_named: bool) -> None:
    """An update that goes too far raises the loss before the gradient is not finite."""
    values = calm(60) | {
        "loss": [2.0 + (last - 2.0) * step / 59 for step in range(60)],
        "weight_norm": [8.0 + 0.5 * step for step in range(60)],
    }
    gradient = finding("nonfinite-gradient", 59, where="head.bias", value=NAN)
    replay = Replay("not-possible", operation_names=("sigmoid", "pow"))
    known = failed(59, "nonfinite-gradient", findings=(gradient,), replay=replay, history=(history(values),))
    found = undefined_operation(known)
    assert (found is not None and found.where == "`pow`") is is_named
