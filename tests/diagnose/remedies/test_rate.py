"""The learning rate that is proposed in place of one that is too high."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradexplode.diagnose import diagnose
from lightning_gradexplode.diagnose.first_update import first_update_ratio
from lightning_gradexplode.diagnose.remedies.rate import rate_factor
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Evidence, Experiments, OptimizerFacts
from tests.diagnose.evidence import diverged, finding, growing, history, parameter, run
from tests.diagnose.growth_examples import OVERSHOOT

NAN = math.nan


def seldom_logged(kind: str, group: Mapping[str, float], layer: nn.Linear, norm: float) -> Evidence:
    """Return the evidence of a run whose updates were measured from the third step on only."""
    quantities = growing(rate=group["lr"])
    quantities["update_ratio"][:2] = [NAN, NAN]
    quantities["grad_norm"][0] = norm
    std = float(layer.weight.detach().square().mean().sqrt())
    facts: dict[str, float | bool | str] = dict(group)
    weight = parameter("weight", tuple(layer.weight.shape), std=std)
    parts = run(parameters=(weight,), optimizers=(OptimizerFacts(kind, (facts,)),))
    recorded = replace(history(quantities), parameters=("weight",))
    return diverged(run=parts, history=(recorded,))


@pytest.mark.parametrize(
    ("make", "group"),
    [
        (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 0.2, "beta1": 0.9, "beta2": 0.999}),
        (torch.optim.AdamW, {"lr": 0.2, "weight_decay": 0.0}),
        (torch.optim.RMSprop, {"lr": 0.02, "alpha": 0.999}),
        (torch.optim.Adagrad, {"lr": 0.2}),
    ],
)
def test_the_first_update_is_known_in_a_run_that_measures_updates_seldom(
    make: Callable[..., torch.optim.Optimizer], group: dict[str, float]
) -> None:
    """By the formula of the optimizer; it is the one that the optimizer itself takes."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 32, bias=False)
    options = {name: value for name, value in group.items() if not name.startswith("beta")}
    optimizer = make(layer.parameters(), **options)
    layer(torch.randn(16, 8)).square().sum().backward()
    assert layer.weight.grad is not None
    evidence = seldom_logged(type(optimizer).__name__, group, layer, float(layer.weight.grad.norm()))
    before = layer.weight.detach().clone()
    optimizer.step()
    ratio = float((layer.weight.detach() - before).norm() / before.norm())
    assert first_update_ratio(evidence) == pytest.approx(ratio, rel=1e-3)


def test_the_interval_of_logs_does_not_change_the_rate_that_is_proposed() -> None:
    """For a first update of the size of the weights a hundredth of the rate is proposed, measured or computed."""
    layer = nn.Linear(8, 32, bias=False)
    norm = float(layer.weight.detach().norm())
    seldom = seldom_logged("SGD", {"lr": 0.5}, layer, 2 * norm)
    often = seldom.history[0]
    ratios = often.values["update_ratio"].copy()
    ratios[:2] = [1.0, 1.0]
    measured = replace(seldom, history=(replace(often, values={**often.values, "update_ratio": ratios}),))
    assert rate_factor(seldom, trend(seldom)) == pytest.approx(rate_factor(measured, trend(measured)), rel=1e-3)


def test_a_first_gradient_that_was_clipped_makes_a_smaller_update() -> None:
    """The first update is computed from the gradient after clipping."""
    layer = nn.Linear(8, 32, bias=False)
    norm = float(layer.weight.detach().norm())
    evidence = seldom_logged("SGD", {"lr": 0.5}, layer, 2 * norm)
    recorded = evidence.history[0]
    clipped = recorded.values["grad_norm"].copy()
    clipped[0] = 0.02 * norm
    limited = replace(evidence, history=(replace(recorded, values={**recorded.values, "grad_norm_clipped": clipped}),))
    assert first_update_ratio(evidence) == pytest.approx(1.0)
    assert first_update_ratio(limited) == pytest.approx(0.01)


def test_the_first_update_of_an_optimizer_of_the_users_own_is_known_by_the_weights() -> None:
    """Signs of gradients are nearly orthogonal to the weights, whose norm has grown by what was added."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    before = layer.weight.detach()
    update = 0.1 * torch.randn(64, 64).sign()
    evidence = seldom_logged("SignDescent", {"lr": 0.1}, layer, 1.0)
    recorded = evidence.history[0]
    norms = recorded.values["weight_norm"].copy()
    norms[0] = float((before + update).norm())
    known = replace(evidence, history=(replace(recorded, values={**recorded.values, "weight_norm": norms}),))
    assert first_update_ratio(known) == pytest.approx(float(update.norm() / before.norm()), rel=0.1)


def sum_of_squares(rate: float) -> tuple[Evidence, float]:
    """Return a run of gradient descent on a sum of squared errors, and the rate from which it diverges."""
    torch.manual_seed(0)
    inputs, layer = torch.randn(64, 8), nn.Linear(8, 1, bias=False)
    targets = inputs @ torch.randn(8, 1)

    def loss(weight: torch.Tensor) -> float:
        return float((inputs @ weight.T - targets).square().sum())

    value = (layer(inputs) - targets).square().sum()
    (gradient,) = torch.autograd.grad(value, layer.weight)
    before = layer.weight.detach()
    pairs = tuple((factor, loss(before - factor * rate * gradient)) for factor in (0.0, 0.01, 0.1, 0.3, 1.0))
    evidence = seldom_logged("SGD", {"lr": rate}, layer, float(gradient.norm()))
    quantities = {**evidence.history[0].values, "learning_rate": np.full(12, rate)}
    quantities["loss"][0] = value.item()
    searched = replace(
        evidence,
        history=(replace(evidence.history[0], values=quantities),),
        experiments=Experiments(line_search=pairs),
    )
    return searched, 2 / float(torch.linalg.eigvalsh(2 * inputs.T @ inputs).max())


@pytest.mark.parametrize("excess", [3.0, 30.0, 3000.0])
@pytest.mark.parametrize("is_searched", [True, False])
def test_the_rate_fits_the_curvature_however_far_too_high_it_was(excess: float, is_searched: bool) -> None:
    """Descent on a parabola converges below twice the inverse of its largest curvature, and soon near that."""
    _, limit = sum_of_squares(1.0)
    evidence, _ = sum_of_squares(excess * limit)
    if not is_searched:  # a loop in which no step can be computed again
        evidence = replace(evidence, experiments=None)
    proposed = excess * limit * rate_factor(evidence, trend(evidence))
    assert (0.1 if is_searched else 0.005) * limit < proposed < limit


def test_no_rate_above_the_usual_ones_is_proposed_unless_it_was_measured() -> None:
    """Of a rate of 300 nothing is known but that it is too high; a tenth of it is, too."""
    values = history({"loss": [2.0, 9.0, 90.0], "learning_rate": [300.0] * 3})
    one = run(optimizers=(OptimizerFacts("SGD", ({"lr": 300.0},)),))
    evidence = Evidence(step=2, now=2, findings=(finding("diverging-loss", 2),), history=(values,), run=one)
    assert 300.0 * rate_factor(evidence, trend(evidence)) <= 0.5
    falls = Experiments(line_search=((0.0, 2.0), (0.01, 1.0), (0.1, 3.0), (0.3, 6.0), (1.0, 90.0)))
    measured = replace(evidence, experiments=falls)
    assert 300.0 * rate_factor(measured, trend(measured)) == pytest.approx(1.5)


def test_a_parabola_far_out_that_does_not_fit_the_first_gradient_does_not_count() -> None:
    """A network whose units are saturated by the step has another curvature there than where it started."""
    _, limit = sum_of_squares(1.0)
    evidence, _ = sum_of_squares(3000 * limit)
    far = tuple((factor, (factor / 0.2 - 1) ** 2) for factor in (0.0, 0.01, 0.1, 0.3, 1.0))
    misled = replace(evidence, experiments=Experiments(line_search=far))
    assert 0 < 3000 * limit * rate_factor(misled, trend(misled)) < limit


def test_the_rate_is_taken_from_the_line_search() -> None:
    """Half of that at which the loss was least, or lower if the first update bears less."""
    weights = [8.0 * 1.04**step for step in range(12)]
    ordinary = history({**growing(), "update_ratio": [0.05] * 12, "weight_norm": weights})
    assert "lr=0.03" in diagnose(diverged(experiments=OVERSHOOT, history=(ordinary,))).remedies[0]
    assert "lr=0.02" in diagnose(diverged(experiments=OVERSHOOT)).remedies[0]
