"""A state of the optimizer that does not fit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.diagnose.causes.optimizer import optimizer_state
from lightning_gradexplode.diagnose.causes.update_sizes import forgotten_each_epoch
from lightning_gradexplode.records import Evidence, OptimizerFacts, UpdateFault
from tests.diagnose.evidence import NAN, calm, diverged, failed, finding, growing, history, parameter, run

ADAM = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
SGD = {"lr": 0.01, "momentum": 0.9}


def first_update(optimizer: OptimizerFacts, update: float) -> Evidence:
    """Return the evidence of a run of 10,000 weights of norm 10, whose first update has a norm; it diverges."""
    values = growing(rate=0.01)
    values["grad_norm"][0], values["update_ratio"][0] = 5.0, update / 10.0
    values["weight_norm"] = [10.0 + 0.1 * step for step in range(12)]
    one = replace(history(values), parameters=("body.weight",), parameter_grad_norm=np.zeros((12, 1), np.float32))
    facts = run(optimizers=(optimizer,), parameters=(parameter("body.weight", (100, 100), std=0.1),))
    return diverged(history=(one,), run=facts)


SLOW_ADAM = OptimizerFacts("Adam", ({**ADAM, "lr": 0.001},))


def after_a_jump(kind: OptimizerFacts, rise: float, ratio: float = NAN) -> Evidence:
    """Return the evidence of a calm run of 288 weights, whose norm rises at one step, so that it diverges."""
    quantities = calm(40, rate=0.001)
    quantities["weight_norm"][30:] = [one + rise for one in quantities["weight_norm"][30:]]
    quantities["update_ratio"] = [NAN] * 30 + [ratio] + [NAN] * 9
    found = (finding("diverging-loss", 32),)
    return Evidence(30, 39, findings=found, history=(history(quantities),), run=run(optimizers=(kind,)))


def test_weights_that_rise_by_more_than_adam_can_move_them_show_a_state_that_does_not_fit() -> None:
    """Whatever the gradients are, it moves 288 weights by at most 0.001 * 0.1 / sqrt(0.001) * sqrt(288) = 0.0537."""
    found = optimizer_state(after_a_jump(SLOW_ADAM, 1.0))
    assert found is not None
    assert found.kind == "optimizer-state"
    assert "at most 0.0537" in found.evidence[0]


@pytest.mark.parametrize(
    ("kind", "rise", "ratio"),
    [
        (SLOW_ADAM, 0.1, NAN),  # no clear excess
        (SLOW_ADAM, -1.0, NAN),  # as by pruning
        (SLOW_ADAM, 1.0, 0.001),  # the update was small: something else has written to the weights
        (OptimizerFacts("SGD", ({"lr": 0.001},)), 1.0, NAN),
        (OptimizerFacts("RAdam", ({**ADAM, "lr": 0.001},)), 1.0, NAN),
    ],
)
def test_other_rises_of_the_weights_show_no_such_state(kind: OptimizerFacts, rise: float, ratio: float) -> None:
    """The formulas of gradient descent, and of the first steps of RAdam, have no bound without the gradients."""
    assert optimizer_state(after_a_jump(kind, rise, ratio)) is None


@pytest.mark.parametrize(
    ("kind", "group", "bound"),
    [("Adam", ADAM, 0.01 * 100 * 0.1 / 0.001**0.5), ("SGD", SGD, 0.01 * 5.0 / (1 - 0.9))],
)
def test_a_first_update_beyond_the_formula_is_one_of_a_wrong_state(
    kind: str, group: dict[str, float], bound: float
) -> None:
    """Restored averages of other gradients make it; one within the formula has no such cause."""
    optimizer = OptimizerFacts(kind, (group,), 100, True)
    cause = optimizer_state(first_update(optimizer, 4 * bound))
    assert cause is not None
    assert cause.confidence >= 0.8
    assert "fresh optimizer state" in cause.remedies[0]
    within = optimizer_state(first_update(optimizer, 2 * bound))
    assert within is None or "fresh optimizer state" not in within.remedies[0]


def test_a_fresh_adam_whose_first_update_is_beyond_the_formula_has_another_formula() -> None:
    """The optimizer of torch takes its place."""
    cause = optimizer_state(first_update(OptimizerFacts("OwnAdam", (ADAM,)), 50.0))
    assert cause is not None
    assert "torch.optim.AdamW" in cause.remedies[0]


def test_an_own_adam_whose_weights_grow_beyond_the_formula_later_has_another_formula() -> None:
    """As with a correction of its averages that tends to zero: restarting its state would not help."""
    cause = optimizer_state(after_a_jump(OptimizerFacts("OwnAdam", ({**ADAM, "lr": 0.001},)), 1.0))
    assert cause is not None
    assert "formula of Adam" in cause.evidence[0]
    assert "torch.optim.AdamW" in cause.remedies[0]


def test_an_optimizer_of_an_unknown_formula_has_no_bound() -> None:
    """Nothing is known of what its updates may be."""
    assert optimizer_state(first_update(OptimizerFacts("Sophia", ({"lr": 0.01},)), 500.0)) is None


@pytest.mark.parametrize(("held", "words"), [(0.0, "are zero"), (0.005, "a norm of 0.005")])
def test_running_squares_of_far_smaller_gradients_are_those_of_another_run(held: float, words: str) -> None:
    """Averages that were not restored with their number of steps, and those of a loss that was divided."""
    optimizer = OptimizerFacts("Adam", (ADAM,), 2000, True, held)
    cause = optimizer_state(first_update(optimizer, 0.1))
    assert cause is not None
    assert words in cause.evidence[0]
    assert "fresh optimizer state" in cause.remedies[0]


@pytest.mark.parametrize("held", [None, 0.5, 4.0, 100.0])
def test_running_squares_of_such_gradients_are_no_cause(held: float | None) -> None:
    """Gradients of single batches differ, and nothing is known without running squares."""
    assert optimizer_state(first_update(OptimizerFacts("Adam", (ADAM,), 2000, True, held), 0.1)) is None


def epochs(ratio: float, loss: float, rate: float = 0.01) -> Evidence:
    """Return the evidence of six epochs of ten steps; update, loss and rate at the starts of all but the first."""
    values = {**calm(60), "epoch": [float(step // 10) for step in range(60)]}
    for start in range(10, 60, 10):
        values["update_ratio"][start], values["loss"][start + 1] = ratio, loss
        values["learning_rate"][start] = rate
    facts = run(optimizers=(OptimizerFacts("Adam", (ADAM,)),))
    return Evidence(30, 59, (finding("unstable-loss", 30),), facts, (history(values),))


def test_large_updates_and_a_jump_at_each_start_of_an_epoch_show_an_emptied_state() -> None:
    """As with an optimizer that is created anew for each epoch."""
    (cause,) = forgotten_each_epoch(epochs(0.02, 7.0))
    assert cause.kind == "optimizer-state"
    assert "At 5 of 5 starts of an epoch" in cause.evidence[0]


@pytest.mark.parametrize(
    ("ratio", "loss", "rate"),
    [(0.002, 7.0, 0.01), (0.02, 0.8, 0.01), (0.02, 7.0, 0.1)],
    ids=["usual updates", "no jump", "a schedule by epoch"],
)
def test_other_starts_of_an_epoch_show_none(ratio: float, loss: float, rate: float) -> None:
    """Data in another order, a large update that disturbs nothing, or a rate that rises."""
    assert list(forgotten_each_epoch(epochs(ratio, loss, rate))) == []


def test_a_weight_that_an_update_has_lost_is_shown_with_the_optimizers_state() -> None:
    """Its parameter is reported, with the numbers that the update was computed from."""
    fault = UpdateFault("body.weight", "float32", weight=math.inf, weight_before=0.125, state={"exp_avg_sq": 0.0})
    cause = optimizer_state(failed(3, "nonfinite-weight", update_fault=fault))
    assert cause is not None
    assert cause.where == "body.weight"
    assert "went from 0.125 to inf; its state: exp_avg_sq 0." in cause.evidence[1]


@pytest.mark.parametrize(("kind", "words"), [("Adam", "`eps=1e-8`"), ("OwnFormula", "where a gradient is zero")])
def test_what_the_formula_of_an_own_optimizer_divides_by_is_to_be_bounded(kind: str, words: str) -> None:
    """It has no setting that is known; here it has lost a weight whose gradient is zero."""
    fault = UpdateFault("body.weight", "float32", weight=math.nan, weight_before=0.125, gradient=0.0)
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": 0.01},)),))
    cause = optimizer_state(failed(3, "nonfinite-weight", update_fault=fault, run=facts))
    assert cause is not None
    assert words in cause.remedies[0]


@pytest.mark.parametrize(("kind", "is_named"), [("RMSprop", True), ("AdaBelief", False)])
def test_an_epsilon_is_small_for_optimizers_that_divide_by_it(kind: str, is_named: bool) -> None:
    """AdaBelief adds its default of 1e-16 to an average at each step."""
    settings = {"lr": 1.0, "eps": 1e-16}
    cause = optimizer_state(diverged(run=run(optimizers=(OptimizerFacts(kind, (settings,)),))))
    assert (cause is not None and any("`eps=1e-16`" in one for one in cause.evidence)) is is_named


@pytest.mark.parametrize(("rate", "confidence"), [(0.001, 0.85), (1.0, 0.4)])
def test_a_rate_far_above_the_usual_ones_explains_the_first_updates_of_a_resumed_run(
    rate: float, confidence: float
) -> None:
    """They are too large whether the averages of Adam were restored or not."""
    values = {name: one[:7] for name, one in growing(rate=rate).items()}
    facts = run(first_step=1000, is_resumed=True, optimizers=(OptimizerFacts("Adam", ({**ADAM, "lr": rate},)),))
    found = (finding("diverging-loss", 1003),)
    cause = optimizer_state(Evidence(1000, 1006, found, facts, (history(values, first_step=1000),)))
    assert cause is not None
    assert "empty state of Adam" in cause.evidence[0]
    assert cause.confidence == confidence
