"""Gradients that are not those of the loss, by the slope of the loss along them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.descent import multiplied_gradients
from lightning_gradexplode.records import Evidence, Experiments, LossTerm, OptimizerFacts, OwnFunction, Replay
from tests.diagnose.evidence import batch, diverged, field, growing, history, operand, parameter, run


def measured(
    whole: float, computed_targets: bool = False, passes: int = 1, again: float | None = None, **shares: float
) -> Evidence:
    """Return the evidence of a run that diverges, with the slopes along the gradients of its parameters.

    Without a known loss function if `again` is given, the norm of the gradient of 5.0 when it is computed again.
    """
    named = tuple((name.replace("_", "."), share) for name, share in shares.items())
    target = operand(least=-7.0 if computed_targets else -1.0, greatest=7.0 if computed_targets else 1.0)
    losses = () if again is not None else (LossTerm("mse_loss", (operand(), target)),)
    return diverged(
        experiments=Experiments(
            line_search=((0.01, 30.0), (1.0, 9e8)),
            memory_grad_norm=5.0,
            batch_grad_norm=again,
            slope_ratio=whole,
            slope_ratios=named,
        ),
        replay=Replay("finite", loss=10.0, losses=losses),
        batch=batch(field("batch.y", shape=(16, 4), usual_least=-1.0, usual_greatest=1.0)),
        history=(history(growing() | {"backward_passes": [float(passes)] * 12}),),
    )


@pytest.mark.parametrize(
    ("evidence", "factor", "parameters"),
    [
        (measured(1e-3, body_weight=1e-3, body_bias=1.01e-3, head_weight=1e-3), 1000, ()),
        (measured(1e-3, head_weight=1e-3, head_bias=1.0, body_weight=1.0), 1000, ("head.weight",)),
        (measured(0.25, body_weight=0.25, head_weight=0.25), 4, ()),
        (measured(-0.2, body_weight=-0.2, head_weight=-0.2), -5, ()),
        (measured(0.2, again=1.0, body_weight=0.2, head_weight=0.2), 5, ()),
    ],
    ids=["all", "one", "by four", "by minus five", "outside of the backward pass"],
)
def test_gradients_whose_slopes_are_all_too_small_by_one_factor_are_multiplied(
    evidence: Evidence, factor: float, parameters: tuple[str, ...]
) -> None:
    """By that factor; neither the rate nor moving targets are named, which the overshoot would suggest."""
    found = multiplied_gradients(evidence)
    assert found is not None
    assert found.factor == pytest.approx(factor, rel=0.02)
    assert found.parameters == parameters
    result = diagnose(evidence)
    assert result.causes[0].kind == "unknown"
    assert f"{found.factor:.3g} times those of the loss" in result.causes[0].evidence[0]
    assert "register_hook" in result.remedies[0]


@pytest.mark.parametrize(
    "evidence",
    [
        measured(0.02, body_weight=0.02, head_weight=0.05),
        measured(0.02, computed_targets=True, body_weight=0.02, head_weight=0.02),
        measured(0.02, head_weight=0.02, body_weight=1.0),
        measured(0.2, passes=5, body_weight=0.2, head_weight=0.2),
        measured(0.6, body_weight=0.6, head_weight=0.6),
        measured(-1.0, body_weight=-1.0, head_weight=-1.0),
        measured(1.0),
    ],
    ids=[
        "unlike",
        "own outputs as targets",
        "another module",
        "several passes",
        "less than three",
        "a wrong sign",
        "right",
    ],
)
def test_slopes_that_targets_or_passes_may_explain_are_left_open(evidence: Evidence) -> None:
    """Targets that move change the slopes of parameters differently, or alike if they are the outputs themselves."""
    assert multiplied_gradients(evidence) is None


def rate_seen(**parts: Any) -> Evidence:
    """Return the evidence of a loop without a replay, for which the rate would be named."""
    facts = run(optimizers=(OptimizerFacts(parts.pop("kind", "SGD"), ({"lr": 0.05},)),))
    return diverged(history=(history(growing(rate=0.05)),), run=facts, batch=batch(field()), **parts)


@pytest.mark.parametrize(
    ("parts", "factor"),
    [
        ({"loss_factor": 100.0}, 100.0),
        ({"first_changes": (50.0,)}, 50.0),
        ({"loss_factor": 100.0, "first_changes": (0.5,)}, 50.0),
        ({"loss_factor": 100.0, "first_changes": (0.01,)}, None),
        ({"loss_factor": -1.0}, None),
        ({"loss_factor": 100.0, "kind": "Adam"}, None),
        ({"own_functions": (OwnFunction("Times", 100.0, True),)}, 100.0),
        ({"own_functions": (OwnFunction("Times", 0.1, True), OwnFunction("Rounded"))}, None),
    ],
    ids=["loss", "gradients", "both", "clipped", "maximized", "Adam", "function", "smaller"],
)
def test_gradients_that_the_first_step_shows_to_be_larger_are_multiplied(
    parts: dict[str, Any], factor: float | None
) -> None:
    """By the loop, or by a function that changes no value, for an optimizer whose steps are in proportion to them."""
    found = multiplied_gradients(rate_seen(**parts))
    assert (None if found is None else found.factor) == factor


@pytest.mark.parametrize(
    ("function", "passes", "is_named"),
    [
        (OwnFunction("Reverse", -30.0, False), 1, True),
        (OwnFunction("Reverse", -1.0, False), 1, False),
        (OwnFunction("Reverse", -1.0, True), 1, True),
        (OwnFunction("Reverse", -1.0, True), 2, False),
    ],
    ids=["large", "adversary", "all of the loss", "one of two losses"],
)
def test_a_function_that_reverses_the_gradient_far_or_for_all_of_the_loss_is_named(
    function: OwnFunction, passes: int, is_named: bool
) -> None:
    """Adversaries reverse the gradient of one of several terms, by a factor of about one."""
    quantities = growing(rate=0.05) | {"backward_passes": [float(passes)] * 12}
    evidence = diverged(own_functions=(function,), history=(history(quantities),))
    first = diagnose(evidence).causes[0]
    assert (first.kind == "loss-without-floor" and first.where == "`Reverse`") is is_named


@pytest.mark.parametrize(
    ("norm", "state", "is_named"), [(30.0, False, True), (22.8, False, False), (23.4, False, True), (30.0, True, False)]
)
def test_a_first_update_beyond_gradient_descent_shows_that_something_changes_the_gradients(
    norm: float, state: bool, is_named: bool
) -> None:
    """Of a gradient of 5 at a rate of 0.05 it moves the weights by 0.25; a state of earlier gradients by more."""
    values = growing(rate=0.05)
    values["weight_norm"][0], values["update_ratio"][0] = norm, math.nan
    facts = run(
        parameters=(parameter("body.weight", (32, 8), 4.0),),
        optimizers=(OptimizerFacts("SGD", ({"lr": 0.05},), has_state=state),),
    )
    named = replace(history(values), parameters=("body.weight",), parameter_grad_norm=np.ones((12, 1), np.float32))
    found = multiplied_gradients(diverged(history=(named,), run=facts))
    assert (found is not None and "between the measurement" in found.sentence) is is_named
