"""Objectives without a floor."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.calm import calm_causes
from lightning_gradexplode.diagnose.causes.objective import loss_without_floor, negative_term
from lightning_gradexplode.records import Experiments, LossTerm, ModuleFacts, OptimizerFacts, Replay, Severity
from tests.diagnose.evidence import calm, diverged, finding, growing, history, operand, run


def test_a_likelihood_of_plain_outputs_has_no_floor() -> None:
    """Logarithms of probabilities are never above zero; the line and the missing log-softmax are named."""
    falling = history({**growing(), "loss": [0.2, *(-(2.0**step) for step in range(1, 12))]})
    plain, log = (
        LossTerm("nll_loss_forward", (operand(least=-9.0, greatest=most),), file="m.py", line=3)
        for most in (40.0, -0.1)
    )
    found = loss_without_floor(diverged(history=(falling,), replay=Replay("finite", losses=(plain,))))
    assert found is not None
    assert found.where == "`nll_loss` at m.py:3"
    assert "log_softmax" in found.remedies[0]
    other = loss_without_floor(diverged(history=(falling,), replay=Replay("finite", losses=(log,))))
    assert other is not None
    assert other.where is None


@pytest.mark.parametrize("share", [1, 2])
def test_a_loss_that_only_some_groups_maximize_may_rise(share: int) -> None:
    """Weights of terms that are maximized beside a network are meant; where all groups are, the loss never ends."""
    groups = [{"lr": 0.5, "maximize": place < share} for place in range(2)]
    found = loss_without_floor(diverged(run=run(optimizers=(OptimizerFacts("Adam", tuple(groups)),))))
    assert (found is not None) is (share == 2)


@pytest.mark.parametrize(("severity", "is_named"), [(Severity.WARNING, False), (Severity.CRITICAL, True)])
def test_a_loss_that_falls_through_zero_has_no_floor_only_where_it_breaks(severity: Severity, is_named: bool) -> None:
    """A likelihood of proper variance falls through zero, too, while small weights grow."""
    values = calm(30) | {
        "loss": [1.0 - 0.06 * step for step in range(30)],
        "weight_norm": [0.8 + 0.04 * step for step in range(30)],
    }
    found = loss_without_floor(
        diverged(step=29, now=29, findings=(finding("backward-gain", 29, severity),), history=(history(values),))
    )
    assert (found is not None) is is_named


@pytest.mark.parametrize("grows", [True, False])
def test_a_loss_that_falls_faster_while_its_gradient_grows_has_no_floor_where_it_breaks(grows: bool) -> None:
    """As a likelihood whose deviation shrinks; near a lower bound the gradient gets smaller."""
    falls = [-0.6 - 0.003 * step**2 for step in range(22)]
    values = calm(30) | {
        "loss": [*falls, -1.4, 16.0, -0.9, 100.0, 1e3, 1e4, 1e5, 1e6],
        "grad_norm": [0.4 * (1.08 if grows else 0.95) ** step for step in range(22)]
        + [10.0**step for step in range(8)],
    }
    found = loss_without_floor(
        diverged(step=27, now=29, findings=(finding("gradient-growth", 27),), history=(history(values),))
    )
    assert (found is not None) is grows


@pytest.mark.parametrize(("power", "is_named"), [(0.5, False), (0.95, True), (2.0, True)])
def test_a_loss_that_levels_off_far_below_zero_has_a_floor(power: float, is_named: bool) -> None:
    """It falls by less over the second half of the run than over the first; without a floor hardly less, or more."""
    values = calm(40) | {"loss": [0.05 - 0.1 * step**power * 40 ** (1 - power) for step in range(40)]}
    found = loss_without_floor(
        diverged(step=39, now=39, findings=(finding("gradient-growth", 39),), history=(history(values),))
    )
    assert (found is not None) is is_named


@pytest.mark.parametrize(
    ("share", "shares", "named", "where"),
    [
        (-1.0, {}, True, None),
        (-0.9, {"body.weight": -0.9, "head.weight": -0.9}, False, None),
        (0.3, {"head.weight": 1.0, "body.weight": -1.0}, True, "body.weight"),
        (0.3, {"head.weight": 1.0, "body.weight": 0.2}, False, None),
        (1.0, {}, False, None),
    ],
)
def test_a_loss_that_falls_along_its_gradient_by_as_much_as_it_should_rise_has_a_wrong_sign(
    share: float, shares: dict[str, float], named: bool, where: str | None
) -> None:
    """Moving targets change the slope by any other amount; the last parameter before the wrong sign is named."""
    measured = Experiments(slope_ratio=share, slope_ratios=tuple(shares.items()))
    found = loss_without_floor(diverged(experiments=measured, history=(history(growing()),)))
    assert (found is not None) is named
    assert found is None or (found.where, "gradcheck" in found.remedies[0]) == (where, True)


@pytest.mark.parametrize(
    ("second_half", "value", "named"),
    [(0.8, 1.0, True), (0.1, 1.0, False), (0.8, None, False)],
    ids=["it falls on", "it levels off", "one value for each element"],
)
def test_a_loss_that_falls_through_zero_with_a_function_that_never_is_has_a_negative_term(
    second_half: float, value: float | None, named: bool
) -> None:
    """A bounded bonus levels off, and the losses of elements may be multiplied by numbers of any sign.

    It is also found in a run without an incident.
    """
    falls = [1.0 - 0.3 * step for step in range(20)] + [-5.0 - 0.3 * second_half * step for step in range(20)]
    values = calm(40) | {"loss": falls, "weight_norm": [8.0 + 0.5 * step for step in range(40)]}
    evidence = diverged(
        step=39, now=39, findings=(), history=(history(values),), first_losses=(LossTerm("mse_loss", (), value),)
    )
    assert [one.kind for one in negative_term(evidence)] == ["loss-without-floor"] * named
    assert [one.kind for one in calm_causes(evidence)] == ["loss-without-floor"] * named


@pytest.mark.parametrize(
    ("name", "first", "named"), [("mse_loss", -20.0, True), ("mse_loss", 20.0, False), ("mul", -20.0, False)]
)
def test_a_loss_below_zero_with_a_function_that_never_is_has_a_negative_term(
    name: str, first: float, named: bool
) -> None:
    """Such as a penalty with a negative factor, whose updates overshoot in the end, when the weights have grown."""
    values = growing(12) | {"loss": [first, *(first - 10.0 * step for step in range(1, 8)), 1e3, 1e6, 1e12, 1e20]}
    found = loss_without_floor(
        diverged(history=(history(values),), replay=Replay("not-possible", operation_names=(name,)))
    )
    assert (found is not None and "another term of it is negative" in found.evidence[0]) == named


def test_the_functions_of_one_of_several_losses_say_nothing_of_the_others() -> None:
    """The loss of a policy falls below zero beside the squared error of its critic; its log probability is bounded."""
    values = calm(40)
    values["loss"] = [0.01, *[-10.0 * 1.4**step for step in range(39)]]
    values["weight_norm"] = [8.0 * 1.1**step for step in range(40)]
    facts = run(
        modules=(ModuleFacts("actor", "Linear", "linear"), ModuleFacts("critic", "Linear", "linear")),
        optimizers=(OptimizerFacts("Adam", ({"lr": 0.01},)), OptimizerFacts("Adam", ({"lr": 0.01},))),
    )
    evidence = diverged(
        step=39,
        now=39,
        run=facts,
        history=(history(values), history(calm(40))),
        first_losses=(LossTerm("mse_loss", ()),),
    )
    cause = loss_without_floor(evidence)
    assert cause is not None
    assert "mse_loss" not in cause.evidence[0]
    assert "log_prob.clamp" in cause.remedies[0]
