"""Means over nothing, as a rule over what is known of a step."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.records import Replay
from tests.diagnose.evidence import failed, finding


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
