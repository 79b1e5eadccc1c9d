"""Batches far outside of the others, as a rule over recorded facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.outliers import far_off_batch, far_off_batches, outlier_batch
from lightning_gradexplode.records import Evidence, ModuleFacts, Severity
from tests.diagnose.evidence import (
    NAN,
    batch,
    calm,
    diverged,
    failed,
    field,
    finding,
    growing,
    history,
    labels,
    renamed,
    run,
)

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
    for fields, grows, confidence in ((taken, True, 0.3), (taken, False, 0.8), (renamed(taken, "[0]"), True, 0.8)):
        facts = failed(11, batch=batch(fields))
        cause = outlier_batch(replace(facts, history=(history(quantities),)) if grows else facts)
        assert cause is not None
        assert cause.confidence == confidence


@pytest.mark.parametrize(("loss", "is_named"), [(1.4, True), (0.7, False), (NAN, True)])
def test_a_batch_unlike_the_others_has_a_high_loss(loss: float, is_named: bool) -> None:
    """A spike of the gradient at an ordinary loss comes from the weights; where no loss is known, from the batch."""
    quantities = calm(30)
    quantities["grad_norm"][29], quantities["loss"][29] = 7.5, loss
    spike = finding("gradient-spike", 29, Severity.WARNING)
    found = outlier_batch(diverged(step=29, now=29, findings=(spike,), history=(history(quantities),)))
    assert (found is not None) is is_named


@pytest.mark.parametrize(("size", "is_named"), [(8, True), (4, False)])
def test_a_spike_of_the_gradient_of_a_short_batch_is_no_matter_of_its_data(size: int, is_named: bool) -> None:
    """The mean over a quarter of the rows spreads twice as far."""
    quantities = calm(30)
    quantities["grad_norm"][29], quantities["loss"][29] = 7.5, 1.4
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


def of_losses(losses: Sequence[float]) -> Evidence:
    """Return the evidence of a run with these losses."""
    return Evidence(0, len(losses), history=(history({**calm(len(losses)), "loss": losses}),))


def with_jumps(steps: Sequence[int], rest: float = 1.0) -> list[float]:
    """Return losses around one that are enormous at some steps, with another level after the first of them."""
    losses = [1.0 + 0.1 * (-1) ** step for step in range(120)]
    losses[steps[0] :] = [rest] * (120 - steps[0])
    return [3e8 if step in steps else one for step, one in enumerate(losses)]


def test_batches_whose_loss_is_far_above_the_others_are_named_by_their_steps() -> None:
    """Also where the others get worse meanwhile; the field that reaches far outside of its deviation is the place."""
    known = replace(of_losses(with_jumps((9, 31, 77), rest=40.0)), batch=batch(field("x"), field("y", greatest=1e6)))
    cause = far_off_batch(known)
    assert cause is not None
    assert cause.where == 'batch["y"]'
    assert "At 3 of 120 steps, such as 9, 31, 77" in cause.evidence[0]
    assert "drop or limit" in cause.remedies[0]


@pytest.mark.parametrize(("severity", "is_named"), [(Severity.WARNING, True), (Severity.CRITICAL, False)])
def test_such_batches_are_named_in_an_incident_that_is_not_critical(severity: Severity, is_named: bool) -> None:
    """Their gradients are a warning, which belongs to a step of another batch where it comes later."""
    known = replace(of_losses(with_jumps((9, 31, 70))), findings=(finding("gradient-above-one", 100, severity),))
    assert (outlier_batch(known) is not None) is is_named


@pytest.mark.parametrize(
    "losses",
    [
        with_jumps((40,)),
        [3e8 if step % 3 == 0 else 1.0 for step in range(120)],
        [max(3e8 * 0.5 ** (step % 40), 1.0) if step >= 40 else 1.0 for step in range(120)],
        [1e3 if step % 20 == 7 else 1.0 for step in range(120)],
    ],
    ids=["once", "at every third step", "followed by a slow return", "within the usual noise"],
)
def test_other_jumps_of_the_loss_are_no_matter_of_the_batches(losses: list[float]) -> None:
    """What an update has raised stays up at the next steps, and what happens all the time is usual."""
    assert far_off_batches(of_losses(losses)) == ()


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ([0.42, 0.34, 108.0, 0.29, 0.31, 102.0, 191.0, 91.0], True),  # samples in another unit
        (
            [0.42, 0.34, 0.29, 0.31, 102.0, 191.0, 91.0, 300.0],
            False,
        ),  # it stays up, as after updates that are too large
        ([0.42, 0.34, 8.0, 0.29, 0.31, 9.0, 10.0, 9.0], False),  # no such distance
        ([0.42, 0.34, 108.0, 0.29, 0.31, 0.3, 0.32, 0.3], False),  # once only
    ],
)
def test_a_loss_that_is_far_above_others_and_back_at_the_next_step_comes_from_the_batch(
    losses: list[float], named: bool
) -> None:
    """In a plain loop whose batches are not known."""
    values = {**calm(8), "loss": losses}
    found = outlier_batch(Evidence(7, 7, (finding("gradient-growth", 7),), run(), (history(values),)))
    assert (found is not None and "of the next one" in found.evidence[0]) is named
