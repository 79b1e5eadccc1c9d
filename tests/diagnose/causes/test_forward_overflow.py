"""Values that grow past the number format, as a rule over what a replay has found."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.forward_overflow import forward_overflow
from lightning_gradexplode.records import Evidence, OptimizerFacts, Replay
from tests.diagnose.evidence import (
    NAN,
    calm,
    diverged,
    failed,
    finding,
    history,
    kinds,
    operand,
    operation,
    reproduced,
    run,
)

GROWN = operation("exp", "large", inputs=[operand(60.0, greatest=60.0)], code="scale = torch.exp(raw)")
EXP = operation("exp", "inf", inputs=[operand(187.0, greatest=187.0)], code="y = torch.exp(x)")
SQUARE = operation("pow", "inf", inputs=[operand(1e26, greatest=1e26)])


def test_what_overflows_with_an_unbounded_exponential_is_not_the_cause() -> None:
    """The exponential function is, with the line that a bound belongs to."""
    found = forward_overflow(failed(0, replay=reproduced(SQUARE, grown=GROWN)))
    assert found is not None
    assert "`exp`" in str(found.where)
    assert found.confidence > 0.8
    assert "tanh" in found.remedies[0]


def test_an_exponential_that_grew_with_the_weights_is_a_consequence() -> None:
    """After a divergence it is little evidence."""
    found = forward_overflow(diverged(replay=reproduced(SQUARE, grown=GROWN)))
    assert found is not None
    assert found.confidence <= 0.5


@pytest.mark.parametrize(
    ("shape", "loss", "confidence"),
    [((), math.exp(30.0), 0.8), ((16,), math.exp(30.0) / 16, 0.8), ((), 5.0, 0.3), ((16,), math.exp(40.0), 0.3)],
    ids=["the loss", "the mean of the loss", "a part that is small", "a part beside a larger one"],
)
def test_an_exponential_that_makes_up_the_loss_is_no_consequence(
    shape: tuple[int, ...], loss: float, confidence: float
) -> None:
    """Its slope grows as it does, so that the divergence is its own."""
    grown = operation("exp", "large", inputs=[operand(30.0, greatest=30.0, shape=shape)])
    found = forward_overflow(diverged(replay=Replay("finite", grown=grown, loss=loss)))
    assert found is not None
    assert found.confidence == confidence
    assert ("the same minimum" in found.remedies[0]) == (confidence == 0.8 and shape == ())


def test_an_operation_that_took_ordinary_numbers_is_at_fault_itself() -> None:
    """An exponential function elsewhere in the step has nothing to do with it."""
    plain = operation("exp", "inf", inputs=[operand(97.0, greatest=97.0)], code="y = torch.exp(x)")
    found = forward_overflow(failed(4, replay=reproduced(plain, grown=GROWN)))
    assert found is not None
    assert "97" in found.evidence[0]


def test_a_loss_that_overflows_shows_what_has_grown_before_it() -> None:
    """A product of the user's own is named with little confidence where nothing else is, the loss function is not."""
    product, loss = (operation(name, "inf", inputs=[operand(1e26, greatest=1e26)]) for name in ("mul", "mse_loss"))
    assert diagnose(failed(9, replay=reproduced(product))).causes[0].kind == "forward-overflow"
    assert diagnose(failed(9, replay=reproduced(loss))).causes[0].kind == "unknown"


def test_a_gradient_that_overflows_is_no_overflow_of_the_forward_pass() -> None:
    """What it is computed from has grown before, such as over the steps of a loop that computes gradients itself."""
    backward = operation("tanh_backward", "inf", "backward", inputs=[operand(1e34, greatest=1e34)])
    assert diagnose(failed(9, replay=reproduced(backward))).causes[0].kind == "unknown"


def test_a_square_of_what_has_grown_is_as_little_a_cause_as_a_loss_function() -> None:
    """A loss of the user's own overflows as `mse_loss` does."""
    square = operation("pow", "inf", inputs=[operand(1e26, greatest=1e26)])
    assert diagnose(failed(9, replay=reproduced(square))).causes[0].kind == "unknown"


def test_an_argument_that_grows_while_the_loss_does_not_rise_is_at_fault_itself() -> None:
    """Weights that grow to many times their norm in small updates, with a low loss, are no overshoot."""
    values = calm(60) | {"weight_norm": [8.0 * 1.05**step for step in range(60)]}
    values["loss"][-1] = NAN
    lost = (finding("nonfinite-loss", 59),)
    found = diagnose(Evidence(59, 59, lost, run(), (history(values),), replay=reproduced(EXP)))
    assert kinds(found) == ["forward-overflow"]
    assert found.causes[0].confidence > 0.8


@pytest.mark.parametrize(("rate", "kind"), [(3.0, "learning-rate"), (0.05, "forward-overflow")])
def test_an_overflow_after_an_update_as_large_as_the_weights(rate: float, kind: str) -> None:
    """At an unusually high rate it is a consequence of that update; else the update is one of the gradient."""
    values = {"loss": [15.0, NAN], "grad_norm": [30.0, NAN], "update_ratio": [9.0, NAN], "learning_rate": [rate, rate]}
    facts = run(optimizers=(OptimizerFacts("SGD", ({"lr": rate},)),))
    lost = (finding("nonfinite-loss", 1),)
    found = diagnose(Evidence(1, 1, lost, facts, (history(values),), replay=reproduced(EXP)))
    assert found.causes[0].kind == kind


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (("mm", "exp", "clamp", "mean"), "`exp`"),
        (("neg", "exp", "add", "reciprocal", "mul", "mse_loss"), "`exp`"),
        (("mm", "exp", "mean"), None),
        (("exp", "clamp", "sum", "sqrt"), None),
        (("exp", "sum", "log", "clamp"), None),
        (("exp", "cosh", "clamp"), None),
        (("mm", "clamp", "mse_loss"), None),
    ],
)
def test_the_only_exponential_of_a_finite_loss_without_a_slope_is_named(
    names: tuple[str, ...], place: str | None
) -> None:
    """If something after it can keep the loss finite, and no other operation of the loss has an infinite slope."""
    gradient = finding("nonfinite-gradient", 20, where="head.bias", value=NAN)
    replay = Replay("not-possible", operation_names=names)
    known = failed(20, "nonfinite-gradient", findings=(gradient,), replay=replay)
    cause = forward_overflow(known)
    assert (None if cause is None else cause.where) == place


def test_an_exponential_is_not_named_after_gradients_have_exploded() -> None:
    """They overflow without any operation that has no slope."""
    quantities = {**calm(21), "grad_norm": [0.5 * 30.0**step for step in range(20)]}
    gradient = finding("nonfinite-gradient", 20, where="head.bias", value=NAN)
    replay = Replay("not-possible", operation_names=("exp", "clamp"))
    assert forward_overflow(failed(20, findings=(gradient,), history=(history(quantities),), replay=replay)) is None
