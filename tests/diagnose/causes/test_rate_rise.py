"""Rises of the learning rate, and what went wrong since."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_gradexplode import demo
from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.rate_rise import learning_rate_jump
from lightning_gradexplode.records import Evidence, Experiments, OptimizerFacts
from tests.diagnose.evidence import calm, finding, growing, history, kinds, run
from tests.diagnose.growth_examples import OVERSHOOT

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


@pytest.mark.parametrize(("kind", "rate"), [("SGD", 0.0264), ("Adam", 0.01)])
def test_a_rate_that_was_borne_for_a_moment_is_no_usual_one_of_an_optimizer(kind: str, rate: float) -> None:
    """Steps of a normalized size are not trained with above a rate that is known."""
    values = calm(80)
    values["learning_rate"] = [0.002 * (1 + step) for step in range(80)]
    values["loss"][43] = 0.3
    values["loss"][65:] = [2.4] * 15
    values["loss"][79], values["weight_norm"][79] = 40.0, 30.0
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": 0.002},)),))
    cause = learning_rate_jump(Evidence(79, 79, (finding("diverging-loss", 79),), facts, (history(values),)))
    assert cause is not None
    assert cause.remedies[0] == f"keep the learning rate near {rate:g}"


@pytest.mark.parametrize(("begins", "is_named"), [(60, True), (5, False)])
def test_a_group_that_is_added_in_mid_run_with_a_far_higher_rate_is_a_rise(begins: int, is_named: bool) -> None:
    """The history begins anew with its parameters; the rate before is that with which the run was configured."""
    values = growing(6, rate=30.0)
    evidence = Evidence(
        begins,
        begins + 5,
        (finding("weight-growth", begins + 1),),
        run(optimizers=(OptimizerFacts("SGD", ({"lr": 0.05},)),)),
        (history(values, begins),),
    )
    cause = learning_rate_jump(evidence)
    assert (cause is not None) is is_named
    if cause is not None:
        assert cause.evidence[0] == f"The learning rate rose from 0.05 to 30 at step {begins}."
        assert cause.remedies[0] == "keep the learning rate near 0.05"


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


def test_a_rate_that_rose_many_fold_while_the_loss_came_down_is_named_at_its_peak() -> None:
    """The loss is lowest just before the rate is too high, or a few steps after the peak of a warm-up."""
    for rise in (60, 50):
        values = calm(61)
        values["learning_rate"] = [0.01 * min(1 + step, rise) for step in range(61)]
        values["loss"] = [1.0 - 0.01 * step for step in range(58)] + [3.0, 30.0, 200.0]
        values["update_ratio"][57:], values["weight_norm"][58:] = [0.4, 0.9, 3.0, 4.0], [10.0, 18.0, 40.0]
        evidence = Evidence(58, 60, (finding("diverging-loss", 60),), run(), (history(values),), experiments=OVERSHOOT)
        cause = learning_rate_jump(evidence)
        assert cause is not None
        assert (
            cause.evidence[0]
            == f"The learning rate rose from 0.01 to {rise / 100:.3g}, gradually up to step {rise - 1}."
        )
        assert kinds(diagnose(evidence))[0] == "learning-rate-jump"


def test_a_warm_up_is_no_rise_where_no_update_overshoots_or_nothing_was_learned() -> None:
    """A rise that is under way in most runs of a transformer is no reason by itself."""
    values = calm(61)
    values["learning_rate"] = [0.01 * (1 + step) for step in range(61)]
    values["loss"] = [1.0 - 0.01 * step for step in range(58)] + [3.0, 30.0, 200.0]
    rising = Evidence(58, 60, (finding("diverging-loss", 60),), run(), (history(values),), experiments=LOWERS)
    assert learning_rate_jump(rising) is None
    values["loss"][:58], values["weight_norm"][58:] = [1.0 - 0.001 * step for step in range(58)], [10.0, 18.0, 40.0]
    level = replace(rising, history=(history(values),), experiments=OVERSHOOT)
    assert learning_rate_jump(level) is None


def test_one_batch_far_outside_during_a_warm_up_is_no_rise() -> None:
    """Its update overshoots, too, and the updates before it were ordinary."""
    values = calm(61)
    values["learning_rate"] = [0.001 * (1 + step) for step in range(61)]
    values["loss"] = [*(1.0 - 0.01 * step for step in range(60)), 1e6]
    values["weight_norm"][60] = 1e4
    evidence = Evidence(60, 60, (finding("diverging-loss", 60),), run(), (history(values),), experiments=OVERSHOOT)
    assert learning_rate_jump(evidence) is None


def test_of_several_rises_it_is_the_one_since_which_the_loss_was_not_as_low() -> None:
    """A rate that doubles every ten steps is named where it began to do harm, and what is kept is lower than before."""
    values = calm(60)
    values["learning_rate"] = [0.1 * 2 ** (step // 10) for step in range(60)]
    values["loss"] = [2.0 - 0.02 * step for step in range(40)] + [2.2 + 0.1 * step for step in range(19)] + [90.0]
    values["weight_norm"][55:] = [20.0, 30.0, 40.0, 60.0, 90.0]
    evidence = Evidence(59, 59, (finding("weight-growth", 59),), run(), (history(values),))
    cause = learning_rate_jump(evidence)
    assert cause is not None
    assert cause.where == "the learning rate at step 40"
    assert cause.remedies[0].startswith("keep the learning rate near 0.24")


@pytest.mark.slow
def test_the_rise_of_the_demo_is_named(tmp_path: Path) -> None:
    """Its rate rises by little at each step, and the loss is lowest shortly before it is too high."""
    list(demo.run(tmp_path))
    (found,) = tmp_path.rglob("diagnosis.json")
    assert json.loads(found.read_text())["causes"][0]["kind"] == "learning-rate-jump"


@pytest.mark.parametrize(("rates", "named"), [(30.0, True), (1.5, False)])
def test_a_rate_that_has_only_risen_is_named_though_the_first_loss_was_the_lowest(rates: float, named: bool) -> None:
    """As with a schedule that counts steps in place of epochs; the first rate, which did no harm, is to be kept."""
    values = calm(22)
    values["loss"] = [0.4 + 0.02 * step for step in range(20)] + [40.0, 900.0]
    values["learning_rate"] = [0.02 * rates ** (step / 21) for step in range(22)]
    values["weight_norm"][20:], values["update_ratio"][19:] = [30.0, 300.0], [1.0, 3.0, 9.0]
    overshoot = Experiments(line_search=((0.0, 40.0), (0.01, 39.0), (0.1, 30.0), (0.3, 60.0), (1.0, 900.0)))
    evidence = Evidence(20, 21, (finding("diverging-loss", 20),), run(), (history(values),), experiments=overshoot)
    cause = learning_rate_jump(evidence)
    assert (cause is not None) is named
    assert cause is None or "near 0.02" in cause.remedies[0]
