"""Remedies that depend on the numbers of a run."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose import diagnose, remedies
from lightning_gradexplode.records import Evidence, OptimizerFacts, Replay, RunFacts
from lightning_gradexplode.records.replay import NO_REPLAY
from tests.diagnose.evidence import batch, calm, failed, field, finding, growing, history, run
from tests.diagnose.fault_examples import FAULTS


@pytest.mark.parametrize(
    ("kind", "highest"),
    [("Adam", 0.01), ("AdamW", 0.01), ("Lion", 0.001), ("RMSprop", 0.01), ("Adadelta", 1.0), ("Adagrad", 0.1)],
)
@pytest.mark.parametrize("rate", [1.0, 1e4, 1e9])
def test_no_rate_is_proposed_that_never_works_with_the_optimizer(kind: str, highest: float, rate: float) -> None:
    """However high the rate was, the proposed one is near the highest that is usual for the optimizer."""
    evidence = Evidence(
        step=5,
        now=5,
        findings=(finding("diverging-loss", 5),),
        history=(history(growing(rate=rate)),),
        run=RunFacts(optimizers=(OptimizerFacts(kind, ({"lr": rate},)),)),
    )
    (advice,) = remedies.lower_rate(evidence, 0.1)
    proposed = re.search(r"`lr=(.*)`", advice)
    assert proposed is not None
    assert 0.1 * highest <= float(proposed[1]) <= highest  # with a far lower one almost nothing is learned


@pytest.mark.parametrize(
    ("norms", "value"),
    [
        ([2.0, 3.0, 2.0, 2.0, 3.0, 2.0, 2.0], "clip=2"),
        ([2.0 * 3.0**step for step in range(7)], 'clip="auto"'),
        ([2000.0, 3000.0, 2000.0, 2000.0, 3000.0, 2000.0, 2000.0], 'clip="auto"'),
    ],
)
def test_a_run_that_explodes_from_its_start_has_no_usual_norm(norms: list[float], value: str) -> None:
    """Norms that grow from the first step on, or that are huge, are none to clip at."""
    evidence = Evidence(
        step=7, now=7, findings=(finding("gradient-growth", 7),), history=(history({"grad_norm": norms}),)
    )
    assert value in remedies.clip(evidence)[0].split(", or ")[0]


def test_a_plain_loop_gets_advice_on_how_its_step_can_be_replayed() -> None:
    """Where it has given no step, or no batch; not where it has, and not in Lightning, which does so by itself."""
    plain = run(monitor="GradientWatch")
    given = batch(field())
    no_step = failed(3, run=plain, batch=given, replay=Replay("not-possible", NO_REPLAY))
    other = failed(3, run=plain, batch=given, replay=Replay("not-possible", "there is not enough memory"))
    assert "step=lambda" in remedies.anomaly_mode(no_step)[0]
    assert "watch.batch(batch)" in remedies.anomaly_mode(failed(3, run=plain))[0]
    for evidence in (other, failed(3)):
        assert remedies.anomaly_mode(evidence) == ["find the operation with `torch.autograd.set_detect_anomaly(True)`"]


def test_a_plain_loop_is_told_how_to_find_what_may_have_been_computed() -> None:
    """The graph does not show how a tensor without a gradient was computed; a batch that is known was not."""
    plain = run(monitor="GradientWatch")
    for name, is_told in (("constant in mul", True), ("target of mse_loss", True), ("[0]", False)):
        source = Replay("reproduced", source="batch", source_name=name)
        known = failed(3, run=plain, batch=batch(field(name, nan_count=1)), replay=source)
        assert ["step=lambda" in one for one in remedies.step_again(known)] == [True] * is_told
        assert remedies.step_again(replace(known, run=run())) == []


@pytest.mark.parametrize("monitor", ["GradientWatch", "FabricWatch"])
def test_a_loop_that_does_not_pass_its_loss_is_advised_to(monitor: str) -> None:
    """Without any loss the first advice is to pass it; in Lightning, or with a loss that is NaN, it is not."""
    quantities = {name: values for name, values in calm(4).items() if name != "loss"}
    unknown = failed(3, "nonfinite-gradient", run=run(monitor=monitor), history=(history(quantities),))
    assert "watch.loss(loss)" in remedies.anomaly_mode(unknown)[0]
    for evidence in (replace(unknown, run=run()), failed(0, run=run(monitor=monitor))):
        assert "watch.loss(loss)" not in " ".join(remedies.anomaly_mode(evidence))


def test_a_response_that_is_set_is_not_proposed_again() -> None:
    """The advice to skip is not given to a run that skips already."""
    evidence = replace(FAULTS["a row of NaN"][1], run=run(on_explosion=("skip",)))
    assert "skip" not in " ".join(diagnose(evidence).remedies)


@pytest.mark.parametrize(("taken", "helps"), [(0.0, False), (1.0, True)])
def test_an_update_that_a_scaler_leaves_out_needs_no_response(taken: float, helps: bool) -> None:
    """Unless the loop steps without its scaler."""
    quantities = {**calm(6), "update_taken": [1.0] * 5 + [taken]}
    for scaler, expected in (("adaptive", helps), ("none", True)):
        evidence = failed(5, run=run(scaler=scaler), history=(history(quantities),))
        assert bool(remedies.skip(evidence)) is expected


def test_a_batch_that_makes_the_step_raise_is_left_out_by_the_loop() -> None:
    """There is no update that a response could skip."""
    (advice,) = remedies.skip(replace(failed(5), raised="ValueError"))
    assert "before its forward pass" in advice


@pytest.mark.parametrize(("sign", "helps"), [("nonfinite-weight", False), ("nonfinite-gradient", True)])
def test_no_update_is_skipped_whose_gradient_is_finite(sign: str, helps: bool) -> None:
    """Where the update itself has lost the weights, nothing shows it beforehand."""
    assert bool(remedies.skip(failed(5, sign))) is helps


@pytest.mark.parametrize(("other", "named"), [(0.001, True), (0.2, False)])
def test_the_group_is_named_whose_rate_is_far_above_that_of_the_others(other: float, named: bool) -> None:
    """A rate that is too high for one group is not that of another."""
    groups = ({"lr": other}, {"lr": 0.5})
    evidence = Evidence(
        step=5,
        now=5,
        findings=(finding("diverging-loss", 5),),
        history=(history(growing(rate=0.5)),),
        run=RunFacts(optimizers=(OptimizerFacts("SGD", groups),)),
    )
    (advice,) = remedies.lower_rate(evidence, 0.1)
    assert ("of `optimizer.param_groups[1]` from 0.5 to `lr=0.05`" in advice) == named


@pytest.mark.parametrize(("first", "is_advised"), [(0.01, True), (0.001, False)], ids=["constant", "rising"])
def test_a_rate_that_rises_at_first_needs_no_warm_up(first: float, is_advised: bool) -> None:
    """A schedule of the user's own loop is not known as such, but its rates are."""
    values = calm(30) | {"learning_rate": [min(first * (1 + step), 0.01) for step in range(30)]}
    known = Evidence(29, 29, (finding("diverging-loss", 29),), run(), (history(values),))
    assert bool(remedies.warm_up(known)) is is_advised
