"""Values that grow past the number format, as a rule over what a replay has found."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.forward_overflow import forward_overflow
from lightning_gradexplode.records import Replay
from tests.diagnose.evidence import diverged, failed, operand, operation, reproduced

GROWN = operation("exp", "large", inputs=[operand(60.0, greatest=60.0)], code="scale = torch.exp(raw)")
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
