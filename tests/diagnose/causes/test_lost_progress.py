"""Progress that the update of a spike has undone."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.lost_progress import progress_lost_by_update
from lightning_gradexplode.records import Evidence, Severity
from tests.diagnose.evidence import calm, finding, history, run


def spiked(later: float | None, at_spike: float = 1.5, severity: Severity = Severity.WARNING) -> Evidence:
    """Return the evidence of a loss that comes down from 2.5 to 1.5, and a spike of the gradient at step 99."""
    values = calm(100)
    values["loss"] = [max(2.5 - 0.02 * step, 1.5) + 0.05 * (-1) ** step for step in range(100)]
    values["loss"][99], values["grad_norm"][99] = at_spike, 300.0
    spike = finding("gradient-spike", 99, severity, value=300.0)
    return Evidence(99, 99, (spike,), run(), (history(values),), later_loss=later)


def test_an_update_after_which_the_loss_stays_up_is_too_large() -> None:
    """The loss of the step itself was an ordinary one, so that its batch is as well."""
    (cause, *_) = diagnose(spiked(2.48)).causes
    assert cause.kind == "learning-rate"
    assert "from 2.47 to 1.5" in cause.evidence[0]
    assert "stays at 2.48" in cause.evidence[0]
    assert "lr=" in cause.remedies[0]


@pytest.mark.parametrize(
    "known",
    [spiked(1.45), spiked(None), spiked(2.48, at_spike=2.4), spiked(2.48, severity=Severity.CRITICAL)],
    ids=["came back", "not known yet", "a batch unlike the others", "an explosion"],
)
def test_other_spikes_are_not(known: Evidence) -> None:
    """They pass, or other rules explain them."""
    assert progress_lost_by_update(known) is None
