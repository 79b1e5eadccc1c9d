"""A gain per time step that compounds."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.records import Evidence, ModuleFacts, Severity
from tests.diagnose.evidence import NAN, diverged, finding, history, kinds, parameter, run
from tests.diagnose.growth_examples import RNN


def test_gated_cells_are_not_proposed_for_gated_cells() -> None:
    """An LSTM is not told to become an LSTM."""
    lstm = replace(
        RNN,
        modules=(ModuleFacts("rnn", "LSTM", "recurrent"),),
        parameters=(parameter("rnn.weight_hh_l0", (48, 48), module_kind="LSTM", spectral_radius=3.0),),
    )
    growth = replace(
        finding("backward-gain", 1, Severity.WARNING, "rnn"), message="the gradient grows 1.3 times at each time step"
    )
    found = diagnose(diverged(run=lstm, findings=(growth, finding("diverging-loss", 3))))
    assert found.causes[0].kind == "recurrence"
    assert "LSTM" not in " ".join(found.remedies)


def test_a_loss_that_is_huge_before_any_update_is_no_matter_of_the_rate() -> None:
    """A matrix that a loop applies again and again makes such a loss, and is named by elimination."""
    huge = history({"loss": [1e24, NAN], "grad_norm": [1e25, NAN], "update_ratio": [1e20, NAN]})
    drift = run(parameters=(parameter("drift", (8, 8)),))
    found = diagnose(Evidence(0, 1, (finding("weight-growth", 0), finding("nonfinite-loss", 1)), drift, (huge,)))
    assert (found.causes[0].kind, found.where) == ("recurrence", "drift")
    assert "learning-rate" not in kinds(found)
