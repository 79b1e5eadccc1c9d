"""Means over nothing, as a rule over what is known of a step."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.empty_reduction import empty_reduction
from lightning_gradexplode.records import Replay
from tests.diagnose.evidence import batch, diverged, failed, field, finding


def test_an_infinite_loss_is_no_mean_over_nothing() -> None:
    """A loss that is NaN and has no gradient may be one, with little confidence; an infinite one is none."""
    harmless = failed(9, update_is_harmless=True)
    (cause, *_) = diagnose(harmless).causes
    assert (cause.kind, cause.confidence) == ("empty-reduction", 0.5)
    infinite = replace(harmless, findings=(finding("nonfinite-loss", 9, value=float("inf")),))
    assert diagnose(infinite).causes[0].kind == "unknown"


def test_gradients_that_a_loop_clears_because_of_its_data_are_no_mean_over_nothing() -> None:
    """They are zero, too, but the graph of the loss starts from data that are not finite."""
    of_data = Replay("reproduced", source="batch", source_name="input of layer 0", source_rows=(3,))
    cleared = failed(9, update_is_harmless=True, replay=of_data)
    assert all(cause.kind != "empty-reduction" for cause in diagnose(cleared).causes)


def test_a_single_number_without_a_gradient_is_a_ratio_to_nothing() -> None:
    """A weight of a term by a count of zero; in a loop over single samples it may be data, in float16 an overflow."""
    cases = {
        (field("factor in mul", shape=(), inf_count=1), 1): True,
        (field("constant in add", shape=(), nan_count=1), 16): True,
        (field("constant in mul", shape=(), nan_count=1), 1): False,  # the advantage of one action
        (field("constant in mul", shape=(16,), nan_count=3), 16): False,
        (field("target of sub", shape=(), nan_count=1), 16): False,
        (field("factor in mul", shape=(), dtype="float16", inf_count=1), 16): False,
    }
    for (number, size), is_ratio in cases.items():
        source = Replay("reproduced", source="batch", source_name=number.name)
        evidence = failed(9, batch=batch(field(), number, size=size, usual_size=size), replay=source)
        cause = empty_reduction(evidence)
        assert (cause is not None) == is_ratio, number
        if cause is not None:
            assert (cause.where, cause.confidence) == (number.name, 0.6)
            assert diagnose(evidence).causes[0].kind == "empty-reduction"


def test_a_number_that_has_grown_with_a_divergence_is_no_ratio_to_nothing() -> None:
    """A factor that is computed from the outputs overflows with them."""
    number = field("factor in mul", shape=(), inf_count=1)
    source = Replay("reproduced", source="batch", source_name=number.name)
    assert empty_reduction(diverged(batch=batch(field(), number), replay=source)) is None
