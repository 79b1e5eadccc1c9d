"""Gradients that add up, as rules over recorded facts."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.accumulation import UNCLEARED, accumulated_gradients
from lightning_gradexplode.records import Experiments, LossTerm, OptimizerFacts, Replay
from tests.diagnose.evidence import (
    batch,
    calm,
    diverged,
    field,
    growing,
    history,
    kinds,
    labels,
    operand,
    parameter,
    run,
)


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("times", [UNCLEARED - 1, UNCLEARED])
def test_passes_of_three_steps_since_gradients_were_cleared_are_too_many(micro_batches: int, times: float) -> None:
    """Fewer may be a first step that began within an accumulation."""
    passes = [float(micro_batches * step) for step in range(1, int(times) + 1)]
    quantities = growing(len(passes))
    quantities |= {"backward_passes": passes, "micro_batches": [float(micro_batches)] * len(passes)}
    found = accumulated_gradients(diverged(history=(history(quantities),)))
    is_named = times >= UNCLEARED and len(passes) >= 3
    assert (found is not None) is is_named
    if found is not None:
        assert found.evidence[0].startswith(f"{passes[-1]:g} backward passes")


def test_passes_that_are_cleared_at_each_step_are_none() -> None:
    """Their number stays that of a step, however many there are."""
    steps = 30
    quantities = {**calm(steps), "backward_passes": [3.0] * steps, "micro_batches": [1.0] * steps}
    assert accumulated_gradients(diverged(history=(history(quantities),))) is None


@pytest.mark.parametrize(("evaluations", "is_named"), [(0, False), (UNCLEARED - 1, False), (UNCLEARED, True)])
def test_evaluations_of_a_closure_that_add_up_were_not_cleared(evaluations: float, is_named: bool) -> None:
    """Two may be those of an optimizer that adds them on purpose."""
    found = accumulated_gradients(diverged(uncleared_evaluations=int(evaluations)))
    assert (found is not None) is is_named
    if found is not None:
        assert "in the closure" in found.remedies[0]


@pytest.mark.parametrize(("held", "is_named"), [(0.99 * UNCLEARED, False), (UNCLEARED, True)])
def test_a_gradient_of_three_times_that_of_its_batch_was_not_cleared(held: float, is_named: bool) -> None:
    """The batch alone was computed again in an experiment."""
    found = accumulated_gradients(diverged(experiments=Experiments(batch_grad_norm=1.0, memory_grad_norm=held)))
    assert (found is not None) is is_named


@pytest.mark.parametrize(
    ("first", "accumulate", "confidence"),
    [(math.log(16), 1, 0.85), (math.log(16) / 8, 1, None), (50.0, 1, None), (math.log(16), 8, None)],
    ids=["whole losses", "divided losses", "an unknown loss", "a loop that divides them"],
)
def test_many_passes_of_a_step_are_a_sum_unless_they_are_divided(
    first: float, accumulate: int, confidence: float | None
) -> None:
    """The loss of a guess among sixteen classes shows which they are."""
    quantities = {**growing(), "backward_passes": [8.0] * 12}
    quantities["loss"] = [first * 3.0**step for step in range(12)]
    facts = run(parameters=(parameter("head.weight", (16, 32)),), accumulate=accumulate)
    found = accumulated_gradients(diverged(history=(history(quantities),), run=facts))
    assert (None if found is None else found.confidence) == confidence
    assert found is None or "loss / 8" in found.remedies[0]


@pytest.mark.parametrize(
    ("divisors", "is_named"),
    [((), True), ((2.0,), True), ((32.0,), True), ((8.0,), False), ((1000.0,), False), (None, False)],
    ids=["not at all", "by two", "by its rows", "by the passes", "by an unknown count", "unknown"],
)
def test_many_passes_of_losses_that_nothing_divides_are_a_sum(
    divisors: tuple[float, ...] | None, is_named: bool
) -> None:
    """The graph of the first loss shows by what it is divided."""
    quantities = {**growing(), "backward_passes": [8.0] * 12}
    facts, rows = run(optimizers=(OptimizerFacts("SGD", ({"lr": 0.5},)),)), batch(field(shape=(32, 8)))
    evidence = diverged(history=(history(quantities),), run=facts, batch=rows, loss_divisors=divisors)
    found = accumulated_gradients(evidence)
    assert (found is not None) is is_named
    assert found is None or found.confidence == 0.65


def test_a_few_passes_of_losses_that_nothing_divides_may_be_those_of_several_tasks() -> None:
    """A rate that is four times too high seldom makes a run fail."""
    quantities = {**growing(), "backward_passes": [4.0] * 12}
    facts = run(optimizers=(OptimizerFacts("SGD", ({"lr": 0.5},)),))
    assert accumulated_gradients(diverged(history=(history(quantities),), run=facts, loss_divisors=())) is None


def test_passes_of_an_optimizer_that_normalizes_its_steps_are_no_sum() -> None:
    """The scale of the gradients cancels."""
    quantities = {**growing(), "backward_passes": [8.0] * 12}
    facts = run(optimizers=(OptimizerFacts("AdamW", ({"lr": 0.5},)),))
    assert accumulated_gradients(diverged(history=(history(quantities),), run=facts, loss_divisors=())) is None


def test_a_sum_in_place_of_a_mean_is_known_by_its_size() -> None:
    """A squared error above the largest square of a difference can only be a sum; one that overflows is none."""
    operands = (operand(None, -5.0, 5.0, shape=(256, 3)), operand(None, -2.0, 2.0, shape=(256, 3)))
    for value, named in ((9000.0, True), (40.0, False), (float("inf"), False)):
        term = LossTerm("mse_loss", operands, value=value)
        found = diagnose(diverged(batch=batch(field(), labels()), replay=Replay("finite", losses=(term,))))
        assert ("accumulated-gradients" in kinds(found)) is named


def test_a_sum_that_is_divided_by_the_number_of_rows_is_a_mean() -> None:
    """As the reconstruction of an autoencoder, which is summed over the elements of each sample."""
    operands = (operand(None, -5.0, 5.0, shape=(256, 3)), operand(None, -2.0, 2.0, shape=(256, 3)))
    replay = Replay("finite", losses=(LossTerm("mse_loss", operands, value=9000.0),))
    for divisors, is_named in (((2.0,), True), ((256.0,), False), ((-2.0, 256.0), False)):
        found = accumulated_gradients(diverged(replay=replay, loss_divisors=divisors))
        assert (found is not None) is is_named


@pytest.mark.parametrize(
    ("changes", "is_named"), [((1.5,) * 16, True), ((5.0,), False), ((0.2,) * 16, False), ((1.01,) * 16, False)]
)
def test_gradients_that_the_loop_makes_larger_after_each_pass_are_too_large(
    changes: tuple[float, ...], is_named: bool
) -> None:
    """A change before the step only is none of the accumulation, and clipping makes them smaller."""
    found = accumulated_gradients(diverged(first_changes=changes))
    assert (found is not None and "after 16 of the backward passes" in found.evidence[0]) is is_named


@pytest.mark.parametrize(
    ("count", "kind", "rate", "is_named"),
    [(256, "SGD", 0.05, True), (8, "SGD", 0.05, False), (256, "Adam", 0.001, False), (256, "SGD", 30.0, False)],
)
def test_a_loss_that_is_a_sum_is_too_large_for_steps_in_proportion_to_it(
    count: int, kind: str, rate: float, is_named: bool
) -> None:
    """Not for a few elements, an optimizer that divides by the size of the gradient, or a rate that is too high."""
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": rate},)),))
    found = accumulated_gradients(diverged(summed=count, run=facts, history=(history(growing(rate=rate)),)))
    assert (found is not None and "the sum of 256 elements" in found.evidence[0]) is is_named


@pytest.mark.parametrize(
    ("factor", "backward_losses", "named"),
    [
        (None, (), True),  # the first loss is that of a guess, and four of them are added up
        (1.0, (), True),
        (0.25, (), False),  # `watch.loss(loss)`, then `(loss / 4).backward()`
        (None, (0.173, 0.18, 0.17, 0.175), False),  # `self.manual_backward(loss / 4)`
    ],
)
def test_losses_that_the_loop_divides_before_their_backward_pass_are_not_summed(
    factor: float | None, backward_losses: tuple[float, ...], named: bool
) -> None:
    """What the loop has passed, or returned, is the loss before the division."""
    values = {**growing(), "backward_passes": [4.0] * 12, "micro_batches": [4.0] * 12}
    values["loss"] = [math.log(2) * 3.0**step for step in range(12)]
    terms = tuple(LossTerm("nll_loss_forward", (), 4 * one) for one in backward_losses)
    replay = Replay("reproduced", losses=terms, backward_losses=backward_losses) if terms else None
    facts = run(parameters=(parameter("head.weight", (2, 8)),), optimizers=(OptimizerFacts("SGD", ({"lr": 0.1},)),))
    found = accumulated_gradients(diverged(history=(history(values),), run=facts, loss_factor=factor, replay=replay))
    assert (found is not None and "of 4 backward passes" in found.evidence[0]) is named
