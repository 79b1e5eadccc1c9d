"""Batches far outside of the others, as a rule over recorded facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.outliers import outlier_batch
from lightning_gradexplode.records import ModuleFacts, Severity
from tests.diagnose.evidence import NAN, batch, calm, diverged, failed, field, finding, growing, history, labels, run

HUGE = {**growing(), "loss": [3e6 * 10**step for step in range(12)]}


def test_an_outlier_whose_loss_is_infinite_is_not_to_be_clipped() -> None:
    """A gradient that is not finite stays so at any clip value."""
    fill = field(least=-3.0, greatest=9.97e36, outlier_rows=(28,))
    finite, lost = (outlier_batch(one) for one in (diverged(batch=batch(fill)), failed(20, batch=batch(fill))))
    assert finite is not None
    assert lost is not None
    assert "clip" in finite.remedies[0]
    assert 'on_explosion="skip"' in lost.remedies[0]
    assert not any("clip" in one for one in lost.remedies)


def test_an_outlier_that_running_averages_take_in_is_to_be_limited_first() -> None:
    """Neither a clipped update nor one that is left out keeps it from them; without them the update is clipped."""
    outlier = batch(field("image", least=-9e4, greatest=1e5, outlier_rows=(5,)), field("label"))
    net = run(modules=(ModuleFacts("norm", "BatchNorm2d", "normalization"),))
    averaged, plain = (outlier_batch(diverged(batch=outlier, **parts)) for parts in ({"run": net}, {}))
    assert averaged is not None
    assert plain is not None
    assert 'batch["image"].clamp(-3.5, 3.5)' in averaged.remedies[0]
    assert "BatchNorm2d" in averaged.remedies[0]
    assert "clip=" in plain.remedies[0]


def test_a_jump_of_the_loss_over_weights_that_have_grown_is_no_matter_of_the_batch() -> None:
    """The update before it has tripled the weights, and how large it was is not known, as in a loop of one's own."""
    quantities = calm(30)
    quantities["loss"][26] *= 60
    quantities["update_ratio"] = [NAN] * 30
    jump = diverged(step=26, now=29, findings=(finding("diverging-loss", 26),), history=(history(quantities),))
    assert outlier_batch(jump) is not None
    quantities["weight_norm"][25:] = [24.0] * 5
    assert outlier_batch(replace(jump, history=(history(quantities),))) is None


def test_a_jump_of_the_loss_over_data_of_a_usual_range_is_little_reason() -> None:
    """Where the data are not known they are the likely reason; where they are as usual, something else may be.

    Data in the graph of a loss are those of the step that failed in the end, and not of the one where the loss jumped.
    """
    quantities = calm(30)
    quantities["loss"][26] *= 60
    jump = diverged(step=26, now=29, findings=(finding("diverging-loss", 26),), history=(history(quantities),))
    of_graph = batch(field("input of 0"))
    for known, confidence in ((None, 0.45), (of_graph, 0.45), (batch(field(), labels()), 0.3)):
        cause = outlier_batch(replace(jump, batch=known))
        assert cause is not None
        assert cause.confidence == confidence
        assert "look at the batch of step 26" in cause.remedies


def test_what_a_layer_took_after_a_divergence_is_no_outlier() -> None:
    """A discriminator takes what a generator has made of weights that have grown; a batch holds no such data."""
    taken = field("input of d.0", greatest=1e23, outlier_rows=(3,))
    quantities = growing()
    quantities["loss"][-1] = NAN
    for fields, grows, confidence in ((taken, True, 0.3), (taken, False, 0.8), (replace(taken, name="[0]"), True, 0.8)):
        facts = failed(11, batch=batch(fields))
        cause = outlier_batch(replace(facts, history=(history(quantities),)) if grows else facts)
        assert cause is not None
        assert cause.confidence == confidence


@pytest.mark.parametrize(("size", "is_named"), [(8, True), (4, False)])
def test_a_spike_of_the_gradient_of_a_short_batch_is_no_matter_of_its_data(size: int, is_named: bool) -> None:
    """The mean over a quarter of the rows spreads twice as far."""
    quantities = calm(30)
    quantities["grad_norm"][29] *= 15
    spike = finding("gradient-spike", 29, Severity.WARNING)
    facts = replace(batch(field(), labels()), size=size, usual_size=16, is_last=True)
    found = outlier_batch(diverged(step=29, now=29, findings=(spike,), history=(history(quantities),), batch=facts))
    assert (found is not None) is is_named


def test_rows_far_outside_of_the_others_in_each_batch_are_no_matter_of_the_scale() -> None:
    """A number that marks missing values makes the deviation large; half of the rows stay near one."""
    marked = field("[1]", least=-9999.0, mean=-312.0, std=1740.0, usual_least=-9999.0, outlier_rows=(4,), row_size=2.0)
    found = diagnose(diverged(batch=batch(field(), marked), history=(history(HUGE),), step=0)).causes[0]
    assert (found.kind, found.where) == ("outlier-batch", "batch[1], row 4")
    assert "mark missing" in found.remedies[0]
    prices = replace(marked, outlier_rows=(), row_size=900.0)
    assert (
        diagnose(diverged(batch=batch(field(), prices), history=(history(HUGE),), step=0)).causes[0].kind != found.kind
    )


def test_rows_far_outside_of_the_others_are_borne_where_the_loss_is_ordinary() -> None:
    """Such as counts with a long tail, which a loss of their logarithms takes."""
    tail = field("[1]", greatest=5000.0, usual_greatest=5000.0, outlier_rows=(4,), row_size=2.0)
    assert outlier_batch(failed(20, batch=batch(field(), tail))) is None
