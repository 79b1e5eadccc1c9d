"""A learning rate that is too high."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.causes.optimization import MAX_LATE_CONFIDENCE, learning_rate
from lightning_gradexplode.diagnose.trends import MANY_STEPS
from lightning_gradexplode.records import Attempt, Evidence, Experiments, History, OptimizerFacts, Severity
from lightning_gradexplode.records.diagnosis import MIN_CONFIDENCE
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
    kinds,
    labels,
    run,
)
from tests.diagnose.fault_examples import FAULTS
from tests.diagnose.growth_examples import NO_OVERSHOOT, OVERSHOOT


def test_no_overshoot_rules_the_rate_out() -> None:
    """If the update lowers the loss of its own batch, the rate is not named."""
    assert "learning-rate" not in kinds(diagnose(diverged(experiments=NO_OVERSHOOT)))


def test_lower_rates_that_ended_the_same_way_rule_the_rate_out() -> None:
    """Rollbacks at ever lower rates that did not help disprove the rate."""
    tried = tuple(Attempt(step, "rollback", helped=False) for step in range(10))
    assert "learning-rate" not in kinds(diagnose(diverged(experiments=OVERSHOOT, attempts=tried)))


def test_two_rollbacks_do_not_rule_the_rate_out() -> None:
    """A rate far too high is still too high after it was halved twice."""
    tried = tuple(Attempt(step, "rollback") for step in range(2))
    assert "learning-rate" in kinds(diagnose(diverged(experiments=OVERSHOOT, attempts=tried)))


def test_weights_that_keep_their_size_are_no_overshoot() -> None:
    """A loss that rises while weights and updates stay small is not attributed to the rate."""
    flat = {**growing(), "weight_norm": [8.0 - 0.1 * step for step in range(12)], "update_ratio": [0.001] * 12}
    assert "learning-rate" not in kinds(diagnose(diverged(history=(history(flat),))))


@pytest.mark.parametrize(("rate", "named"), [(0.8, False), (8.0, True)])
def test_long_steps_of_lbfgs_are_no_evidence_against_the_rate(rate: float, named: bool) -> None:
    """Its lengths come from gradients that it has seen; a rate above one makes them longer."""
    facts = run(optimizers=(OptimizerFacts("LBFGS", ({"lr": rate},)),))
    found = diagnose(diverged(run=facts, history=(history(growing(rate=rate)),), batch=batch(field(), labels())))
    assert ("learning-rate" in kinds(found)) == named


def test_weights_that_have_grown_by_half_are_stated() -> None:
    """A cause has at least one sentence of evidence, also where no update was large."""
    grown = {**growing(), "weight_norm": [8.0 + 0.4 * step for step in range(12)], "update_ratio": [0.05] * 12}
    evidence = diverged(history=(history(grown),), run=run(optimizers=()), batch=batch(field()))
    stated = [sentence for cause in diagnose(evidence).causes for sentence in cause.evidence]
    assert any("After the update of step 10 the norm of the weights is" in one for one in stated)


@pytest.mark.parametrize(
    ("kind", "ratio", "is_named"), [("Adam", 11.0, True), ("SGD", 11.0, False), ("Adam", 0.5, False)]
)
def test_a_first_update_as_large_as_the_weights_made_the_loss_jump(kind: str, ratio: float, is_named: bool) -> None:
    """The update of a later step lowers the loss of its batch; steps of gradient descent are as long as gradients."""
    quantities = growing()
    quantities["loss"] = [0.5, *[1e9 * 2.0**step for step in range(11)]]
    quantities["update_ratio"], quantities["weight_norm"] = [ratio, *[0.05] * 11], [90.0] * 12
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": 0.5},)),))
    evidence = diverged(history=(history(quantities),), run=facts, experiments=NO_OVERSHOOT)
    assert ("learning-rate" in kinds(diagnose(evidence))) is is_named


LARGE_FIELD = field(least=-4e4, greatest=4e4, std=1.2e4, usual_least=-4e4, usual_greatest=4e4, usual_std=1.2e4)


@pytest.mark.parametrize(
    ("kind", "rate", "ratio", "is_first"),
    [("Adam", 1.0, 7.0, True), ("SGD", 1.0, 7.0, False), ("Adam", 0.001, 7.0, False), ("Adam", 1.0, 0.3, False)],
)
def test_a_scale_does_not_explain_an_update_that_replaces_the_weights(
    kind: str, rate: float, ratio: float, is_first: bool
) -> None:
    """Adam divides it out, unlike gradient descent; at a usual rate the network is one of small weights."""
    quantities = growing(rate=rate)
    quantities["update_ratio"] = [ratio, *[0.2] * 11]
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": rate},)),))
    evidence = diverged(history=(history(quantities),), run=facts, batch=batch(LARGE_FIELD), experiments=OVERSHOOT)
    assert (diagnose(evidence).causes[0].kind == "learning-rate") is is_first


@pytest.mark.parametrize(("ratio", "is_named"), [(7.0, True), (0.4, False)])
def test_an_update_that_replaces_the_weights_needs_no_loss(ratio: float, is_named: bool) -> None:
    """As in the training of a library, whose loop passes none."""
    quantities = {name: values for name, values in growing(rate=1.0).items() if name != "loss"}
    quantities["update_ratio"] = [ratio, *[0.2] * 11]
    facts = run(optimizers=(OptimizerFacts("Adam", ({"lr": 1.0},)),))
    evidence = diverged(findings=(finding("weight-growth", 5),), history=(history(quantities),), run=facts, batch=None)
    assert ("learning-rate" in kinds(diagnose(evidence))) is is_named


def test_an_overflow_after_an_update_that_replaces_the_weights_is_its_result() -> None:
    """Also if the second update came between; the exponential function of trained weights would not overflow."""
    quantities = {**growing(3, rate=1.0), "update_ratio": [7.0, NAN, NAN]}
    quantities["loss"][-1] = NAN
    kept = FAULTS["exp of 187"][1]
    facts = run(optimizers=(OptimizerFacts("Adam", ({"lr": 1.0},)),))
    evidence = failed(2, history=(history(quantities),), run=facts, replay=kept.replay, batch=batch(field()))
    assert diagnose(evidence).causes[0].kind == "learning-rate"


@pytest.mark.parametrize(("group", "named"), [({}, True), ({"rho": 20.0}, False), ({"rho": 0.05, "lr": 3.0}, True)])
def test_sharpness_aware_steps_may_fail_by_the_length_of_their_other_step(group: dict[str, float], named: bool) -> None:
    """The growth of the weights alone does not show which of both is too large, at a usual learning rate."""
    settings = {"lr": 0.1, **group}
    kind = "SAM" if "lr" not in group else "SAM SGD"
    facts = run(optimizers=(OptimizerFacts(kind, (settings,)),))
    evidence = diverged(history=(history(growing(rate=settings["lr"])),), run=facts, batch=batch(field()))
    cause = learning_rate(evidence)
    assert (cause is not None and cause.confidence >= MIN_CONFIDENCE) is named


def test_no_rate_is_named_without_evidence() -> None:
    """The last update of a loss that came back lowers it, and neither weights nor updates are large."""
    quantities = calm(40)
    quantities["loss"][30:] = [*[60.0] * 9, 1.0]
    evidence = Evidence(
        30, 39, (finding("diverging-loss", 38),), run(optimizers=()), (history(quantities),), experiments=NO_OVERSHOOT
    )
    assert learning_rate(evidence) is None


@pytest.mark.parametrize(("calm_steps", "confidence"), [(MANY_STEPS - 1, 0.9), (MANY_STEPS, MAX_LATE_CONFIDENCE)])
def test_a_rate_with_which_all_went_well_for_long_is_less_surely_the_cause(calm_steps: int, confidence: float) -> None:
    """What overshoots by then may have grown, such as a factor of the loss."""
    before, after = calm(calm_steps, loss=2.0, rate=0.5), growing()
    evidence = Evidence(
        calm_steps,
        calm_steps + 8,
        (finding("diverging-loss", calm_steps),),
        run(),
        (history({name: [*before[name], *values] for name, values in after.items()}),),
        experiments=OVERSHOOT,
    )
    found = learning_rate(evidence)
    assert found is not None
    assert found.confidence == pytest.approx(confidence)


@pytest.mark.parametrize(("rate", "is_named"), [(0.2, False), (5.0, True)])
def test_weights_that_merely_grow_are_evidence_against_an_unusual_rate_only(rate: float, is_named: bool) -> None:
    """Small weights double while a network learns."""
    values = calm(30, rate=rate) | {"weight_norm": [0.8 + 0.1 * step for step in range(30)]}
    warned = (finding("backward-gain", 29, Severity.WARNING),)
    found = learning_rate(diverged(step=29, now=29, findings=warned, history=(history(values),), batch=batch(field())))
    assert (found is not None) is is_named


@pytest.mark.parametrize(
    ("steps", "rate", "ratio", "is_named"),
    [(12, 0.05, 0.01, True), (40, 0.05, 0.01, False), (40, 5.0, 0.01, True), (40, 0.05, 0.9, True)],
)
def test_after_many_steps_a_usual_rate_is_no_cause_unless_updates_reach_far(
    steps: int, rate: float, ratio: float, is_named: bool
) -> None:
    """In a plain loop, targets or a factor of the loss that grow look the same, except for shorter steps at first."""
    quantities = {**growing(steps, factor=1.5, rate=rate), "update_ratio": [ratio] * steps}
    found = learning_rate(
        diverged(
            step=steps - 2,
            now=steps - 1,
            findings=(finding("diverging-loss", steps - 2),),
            history=(history(quantities),),
            batch=batch(field(), labels()),
        )
    )
    assert (found is not None) is is_named


@pytest.mark.parametrize(
    ("growth", "level", "is_named"),
    [(0.1, 2.0, True), (0.01, 2.0, False), (0.1, 3.0, False)],
    ids=["weights double", "weights grow slowly", "the loss rises with them"],
)
def test_weights_that_double_within_the_first_steps_are_evidence_of_large_updates(
    growth: float, level: float, is_named: bool
) -> None:
    """However many steps went by before the loss exploded, at a usual rate."""
    facts = run()
    start = math.sqrt(sum(one.std**2 * math.prod(one.shape) for one in facts.parameters))
    quantities = growing(40, factor=1.0, rate=0.05)
    quantities["weight_norm"] = [start * (1 + growth) ** step for step in range(40)]
    quantities["grad_norm"] = [5.0] * 36 + [50.0, 500.0, 5e4, 5e7]
    quantities["loss"] = [2.0, *[level] * 35, 9.0, 90.0, 9e3, 9e6]
    quantities["update_ratio"] = [math.nan] * 36 + [0.3, 0.5, 2.0, 30.0]
    kept = history(quantities)
    names = tuple(one.name for one in facts.parameters)
    found = learning_rate(
        diverged(
            step=37,
            now=39,
            findings=(finding("diverging-loss", 37),),
            history=(History(kept.step, kept.values, names),),
            batch=batch(field(), labels()),
        )
    )
    assert (found is not None) is is_named


def test_an_update_that_raises_the_loss_to_first_order_does_not_overshoot() -> None:
    """The loss rises in proportion to the step; a shorter step, along the same direction, would raise it as well."""
    climbing = Experiments(line_search=((0.0, 200.0), (0.01, 200.3), (0.1, 203.0), (0.3, 209.0), (1.0, 231.0)))
    assert learning_rate(diverged(experiments=climbing)) is None


@pytest.mark.parametrize(("kind", "is_said"), [("SGD", True), ("Adam", False)])
def test_a_large_factor_of_the_loss_is_said_beside_the_rate(kind: str, is_said: bool) -> None:
    """The steps of gradient descent are in proportion to it; with Adam it cancels out."""
    facts = run(optimizers=(OptimizerFacts(kind, ({"lr": 0.5},)),))
    found = learning_rate(diverged(experiments=OVERSHOOT, run=facts, loss_divisors=(16.0, 1e-4)))
    assert found is not None
    assert any("multiplied by 1e+04" in one for one in found.evidence) is is_said
    assert (found.confidence <= MAX_LATE_CONFIDENCE) is is_said
    assert found.remedies[0].startswith("lower the learning rate")


@pytest.mark.parametrize(("count", "is_named"), [(1, True), (2, False)])
def test_the_losses_of_several_optimizers_do_not_show_an_overshoot(count: int, is_named: bool) -> None:
    """Those of adversaries rise and fall in a healthy run; without the loss along the update nothing is named."""
    facts = run(optimizers=(OptimizerFacts("RMSprop", ({"lr": 0.02},)),) * count)
    found = learning_rate(diverged(run=facts, history=(history(growing(rate=0.02)),), batch=batch(field())))
    assert (found is not None) is is_named
