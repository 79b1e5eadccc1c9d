"""Causes in one operation, as rules over what a replay has found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.forward_overflow import forward_overflow
from lightning_gradexplode.diagnose.causes.undefined_operation import undefined_operation
from lightning_gradexplode.records import Replay
from tests.diagnose.evidence import diverged, failed, finding, operand, operation, reproduced

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
    ("names", "place"),
    [
        (("pow", "sum", "sqrt"), "`sqrt`"),
        (("pow", "sum", "hypot", "mean"), "`hypot`"),
        (("pow", "mean"), "`pow`"),
        (("pow", "sqrt", "acos"), "head.bias"),
        (("mul", "sum"), None),
    ],
)
def test_a_root_beside_squares_is_the_operation_without_a_slope(names: tuple[str, ...], place: str | None) -> None:
    """A norm written by hand has a power, too; where two others are, neither is named."""
    gradient = finding("nonfinite-gradient", 4, where="head.bias", value=float("nan"))
    replay = Replay("not-possible", operation_names=names)
    found = undefined_operation(failed(4, "nonfinite-gradient", findings=(gradient,), replay=replay))
    assert (None if found is None else found.where) == place


def test_an_infinite_loss_is_no_mean_over_nothing() -> None:
    """A loss that is NaN and has no gradient may be one, with little confidence; an infinite one is none."""
    harmless = failed(9, update_is_harmless=True)
    (cause, *_) = diagnose(harmless).causes
    assert (cause.kind, cause.confidence) == ("empty-reduction", 0.5)
    infinite = replace(harmless, findings=(finding("nonfinite-loss", 9, value=float("inf")),))
    assert diagnose(infinite).causes[0].kind == "unknown"
