"""What happened, in sentences."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.summary import what_happened
from lightning_gradexplode.records import BatchFacts, Severity
from tests.diagnose.evidence import NAN, batch, calm, failed, field, finding, history
from tests.diagnose.fault_examples import FAULTS


def test_the_batch_stands_beside_the_step_that_it_belongs_to() -> None:
    """The batch of the critical step is named with that step."""
    evidence = failed(8, batch=BatchFacts(batch_idx=3, epoch=2))
    assert "At step 8 (batch 3 of epoch 2)" in what_happened(evidence)


def test_no_batch_stands_beside_an_earlier_step() -> None:
    """Where a warning came first, the batch of the later, critical step is not reported as that of the warning."""
    evidence = failed(28, batch=BatchFacts(batch_idx=28, epoch=0))
    warning = finding("nonfinite-loss", 8, Severity.WARNING, value=NAN)
    text = what_happened(replace(evidence, findings=(warning, *evidence.findings)))
    assert text.startswith("At step 8 the loss is NaN")
    assert "batch 28" not in text


def test_weights_that_are_not_finite_are_named_once() -> None:
    """After an update that made them so, a sentence of its own says nothing more."""
    for sign, is_said in ("nonfinite-gradient", True), ("nonfinite-weight", False):
        text = what_happened(failed(8, sign))
        assert ("The weights are not finite any more." in text) is is_said


def test_a_harmless_incident_is_called_harmless() -> None:
    """For a NaN loss with gradients of zero the summary states that no weight is harmed."""
    assert "no weight" in diagnose(FAULTS["all labels ignored"][1]).what


def test_a_batch_that_is_not_known_is_not_called_finite() -> None:
    """A loop may pass no batch, whose facts then have no field."""
    for facts, is_said in (batch(), False), (batch(field()), True):
        found = diagnose(replace(failed(9), batch=facts))
        assert any("holds no NaN" in one for one in found.causes[0].evidence) is is_said


def test_the_loss_before_is_that_of_the_step_that_is_named() -> None:
    """A log has not every step."""
    quantities = {"loss": calm(10)["loss"]}
    quantities["loss"][-1] = NAN
    whole = history(quantities)
    assert "; one step before it was " in diagnose(failed(9, history=(whole,))).what
    kept = [0, 4, 9]
    sparse = replace(whole, step=whole.step[kept], values={"loss": whole.values["loss"][kept]})
    assert f"; at step 4 it was {whole.values['loss'][4]:.4g}." in diagnose(failed(9, history=(sparse,))).what


def test_an_exception_is_named_where_the_step_has_no_loss() -> None:
    """A distribution has refused NaN parameters, so that there is no loss that could be NaN."""
    text = what_happened(replace(failed(9), raised="ValueError: found invalid values"))
    assert "At step 9 the step raised ValueError: found invalid values, after a value of it was not finite; " in text
    assert "the loss is NaN" not in text


def test_no_growth_is_stated_of_what_was_not_logged() -> None:
    """From a log of the loss and the gradient norm alone, nothing is reported about the weights."""
    quantities = {name: calm(10)[name] for name in ("loss", "grad_norm")}
    quantities["loss"][-1] = NAN
    stated = diagnose(failed(9, history=(history(quantities),))).causes[0].evidence
    assert any("the gradient norm has changed by a factor of" in one for one in stated)
    assert not any("weights" in one for one in stated)
