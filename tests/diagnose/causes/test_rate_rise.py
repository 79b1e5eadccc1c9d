"""Rises of the learning rate, and what went wrong since."""

from __future__ import annotations

import pytest

from lightning_gradexplode.diagnose.causes.rate_rise import learning_rate_jump
from lightning_gradexplode.records import Evidence, Experiments
from tests.diagnose.evidence import calm, finding, history, run

LOWERS = Experiments(line_search=((0.0, 90.0), (0.01, 89.0), (0.1, 80.0), (0.3, 60.0), (1.0, 30.0)))
"""The update of the incident's own step lowers the loss of its batch."""


def raised(update: float, loss: float) -> Evidence:
    """Return the evidence of a rate that rises a hundred times, one step before the first critical finding."""
    values = calm(42)
    values["learning_rate"][40:] = [1.0] * 2
    values["update_ratio"][40], values["loss"][41], values["weight_norm"][41] = update, loss, 30.0
    return Evidence(41, 41, (finding("diverging-loss", 41),), run(), (history(values),), experiments=LOWERS)


def test_one_large_update_after_a_rise_is_enough() -> None:
    """Even where the next update comes down from where that one has left the weights."""
    cause = learning_rate_jump(raised(3.0, 90.0))
    assert cause is not None
    assert cause.where == "the learning rate at step 40"


def test_an_ordinary_update_after_a_rise_is_not() -> None:
    """The batch has made the jump of the loss."""
    assert learning_rate_jump(raised(0.002, 90.0)) is None


@pytest.mark.parametrize(("late", "named"), [(2.4, True), (0.6, False)])
def test_a_gradual_rise_is_named_where_the_loss_has_doubled_since(late: float, named: bool) -> None:
    """The last update may lower the loss of its own batch, which had gone up before; a jump at once is the batch's."""
    values = calm(80)
    values["learning_rate"] = [0.002 * (1 + step) for step in range(80)]
    values["loss"][43] = 0.3
    values["loss"][65:] = [late] * 15
    values["loss"][79], values["grad_norm"][79], values["weight_norm"][79] = 40.0, 40.0, 30.0
    evidence = Evidence(79, 79, (finding("diverging-loss", 79),), run(), (history(values),), experiments=LOWERS)
    assert (learning_rate_jump(evidence) is not None) == named


def test_a_jump_between_tiny_rates_is_not_the_rise_that_counts() -> None:
    """A schedule goes on past its end: sixteenfold at its end, and harmful once it is above its start."""
    rates = [0.05 * (1 - step / 40) ** 4 for step in range(130)]
    rates[40] = 1e-9
    values = calm(130)
    values["learning_rate"] = rates
    values["loss"] = [1.0 - 0.003 * step for step in range(120)] + [0.7 * 1.9**step for step in range(10)]
    values["weight_norm"][-1] = 40.0
    evidence = Evidence(129, 129, (finding("diverging-loss", 129),), run(), (history(values),))
    cause = learning_rate_jump(evidence)
    assert cause is not None
    assert cause.where == "the learning rate at step 129"
    assert f"near {0.3 * rates[119]:.3g}" in cause.remedies[0]  # below the rate at which the loss was lowest


@pytest.mark.parametrize(("delay", "said"), [(0, "at the step of the rise"), (1, "1 step after the rise")])
def test_the_time_from_the_rise_to_the_finding_is_stated(delay: int, said: str) -> None:
    """No number of steps is named where there is none between them."""
    values = calm(41 + delay)
    values["learning_rate"][40:] = [1.0] * (1 + delay)
    values["update_ratio"][40], values["loss"][-1], values["weight_norm"][-1] = 3.0, 90.0, 30.0
    evidence = Evidence(40 + delay, 40 + delay, (finding("diverging-loss", 40 + delay),), run(), (history(values),))
    cause = learning_rate_jump(evidence)
    assert cause is not None
    assert f"the first critical finding came {said}." in cause.evidence[1]


@pytest.mark.parametrize(("factor", "named"), [(1.05, True), (1.0, False)])
def test_a_rate_that_rises_steadily_is_named_soon_after_the_lowest_loss(factor: float, named: bool) -> None:
    """The rate at the lowest loss is little below the last one; the weights leave their scale soon after."""
    steps = 60
    values = calm(steps)
    values["learning_rate"] = [0.5 * factor ** min(step, 58) for step in range(steps)]
    values["loss"] = [1.0 - 0.01 * step for step in range(52)] + [0.6 * 1.5**step for step in range(8)]
    values["weight_norm"][-4:] = [9.0, 12.0, 24.0, 90.0]
    evidence = Evidence(58, 59, (finding("weight-growth", 58),), run(), (history(values),))
    assert (learning_rate_jump(evidence) is not None) == named
