"""A learning rate above the usual ones, in a run without an incident."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_gradexplode.diagnose import diagnose_calm
from lightning_gradexplode.records import Evidence, LossTerm, OptimizerFacts
from tests.diagnose.evidence import calm, history, operand, parameter, run

STUCK = [2.5 + 0.02 * (-1) ** step for step in range(200)]
LOST = [2.5 * 0.95**step if step < 60 else min(0.2 + 0.03 * (step - 60), 2.0) for step in range(200)]
LEARNING = [2.5 * 0.97**step for step in range(200)]


def evidence(loss: list[float], rate: float = 0.03, growth: float = 2.0) -> Evidence:
    """Return the evidence of two hundred steps of Adam without findings."""
    facts = run(
        optimizers=(OptimizerFacts("Adam", ({"lr": rate},)),),
        parameters=(parameter("body.weight", (32, 8)), parameter("head.weight", (1, 32))),
    )
    start = sum(one.std**2 * one.shape[0] * one.shape[1] for one in facts.parameters) ** 0.5
    values = {**calm(200, rate=rate), "loss": loss}
    values["weight_norm"] = [start * (1 + (growth - 1) * step / 199) for step in range(200)]
    kept = history(values)
    return Evidence(200, 200, (), facts, (type(kept)(kept.step, kept.values, ("body.weight", "head.weight")),))


@pytest.mark.parametrize(
    ("loss", "course"), [(STUCK, "has never come down"), (LOST, "had come down from 2.5 to")], ids=["stuck", "lost"]
)
def test_a_rate_with_which_nothing_is_learned_is_named(loss: list[float], course: str) -> None:
    """From twice the highest usual rate on, if the weights have changed by much."""
    found = diagnose_calm(evidence(loss))
    assert found is not None
    assert found.causes[0].kind == "learning-rate"
    assert course in found.causes[0].evidence[1]


@pytest.mark.parametrize(
    "known",
    [evidence(LEARNING), evidence(STUCK, rate=0.01), evidence(STUCK, growth=1.1), evidence([-1.0, *STUCK[1:]])],
    ids=["it learns", "a usual rate", "small updates", "a loss below zero"],
)
def test_other_rates_are_not(known: Evidence) -> None:
    """Nothing is known against a usual rate, nor where the weights have hardly changed."""
    assert diagnose_calm(known) is None


GUESS = [2.3 + 0.02 * (-1) ** step for step in range(199)]


@pytest.mark.parametrize(
    ("loss", "rate", "is_named"),
    [([8.0, *GUESS], 0.03, True), ([8.0, *GUESS], 0.01, False), (LEARNING, 0.03, False)],
    ids=["stuck", "a usual rate", "it learns"],
)
def test_a_rate_as_large_as_the_weights_with_the_loss_of_a_guess_is_named(
    loss: list[float], rate: float, is_named: bool
) -> None:
    """A high first loss comes down to the entropy of the ten classes, 2.303, and nothing is learned beyond it."""
    first = LossTerm("nll_loss", (operand(shape=(16, 10)), operand(shape=(16,))), value=loss[0])
    facts = run(
        optimizers=(OptimizerFacts("Adam", ({"lr": rate},)),),
        parameters=(parameter("body.weight", (32, 100), 1.0), parameter("head.weight", (10, 32), 0.6)),
    )
    found = diagnose_calm(replace(evidence(loss, rate, growth=1.1), run=facts, first_losses=(first,)))
    assert (found is not None) is is_named
    if found is not None:
        assert found.causes[0].kind == "learning-rate"
        assert "2.303, that of a network that has learned nothing" in found.causes[0].evidence[1]


HALF_WAY = [4.0 * 0.9**step if step < 5 else 2.6 + 0.03 * (-1) ** step for step in range(200)]


@pytest.mark.parametrize(
    ("loss", "rate", "is_named"),
    [
        (HALF_WAY, 0.5, True),
        (HALF_WAY, 0.05, False),  # less than ten times a usual rate
        (LEARNING, 0.5, False),
        ([4.0 * 0.9997**step for step in range(200)], 0.5, True),
        ([4.0 - 0.009 * step for step in range(200)], 0.5, False),  # it still comes down
    ],
    ids=["levels out", "a lower rate", "it learns", "hardly learns", "comes down"],
)
def test_a_rate_that_replaces_the_weights_at_each_step_is_named_where_the_loss_levels_out(
    loss: list[float], rate: float, is_named: bool
) -> None:
    """The loss has come down from that of the start, as by the biases of the last layer, and no further."""
    found = diagnose_calm(evidence(loss, rate=rate, growth=1.2))
    assert (found is not None) is is_named
    if found is not None:
        assert f"The learning rate of {rate:g} is at least 10 times" in found.causes[0].evidence[0]


def test_the_rate_that_is_lowered_is_the_highest_of_a_schedule() -> None:
    """At the end of the run it has decayed to nearly nothing."""
    known = evidence(HALF_WAY, rate=0.5)
    kept = known.history[0]
    rates = [0.5 * (1 - step / 200) for step in range(200)]
    found = diagnose_calm(
        replace(known, history=(replace(kept, values={**kept.values, "learning_rate": np.array(rates)}),))
    )
    assert found is not None
    assert found.remedies[0].startswith("lower the learning rate from 0.5 to")
