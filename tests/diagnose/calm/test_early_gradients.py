"""A gradient at the start that keeps the steps of Adam short, as a rule over recorded facts."""

from __future__ import annotations

import re

import pytest
import torch

from lightning_gradexplode.diagnose.calm.early_gradients import early_gradient_remains
from lightning_gradexplode.records import Evidence, OptimizerFacts
from tests.diagnose.evidence import calm, history, run

FLAT, LEARNING = [2.5] * 60, [2.5 * 0.98**step for step in range(60)]


def evidence(norms: list[float], loss: list[float] = FLAT, kind: str = "AdamW") -> Evidence:
    """Return the evidence of sixty calm steps with these gradient norms."""
    optimizer = OptimizerFacts(kind, ({"lr": 1e-2, "beta1": 0.9, "beta2": 0.999},))
    values = {**calm(60), "grad_norm": norms, "loss": loss}
    return Evidence(60, 60, (), run(optimizers=(optimizer,)), (history(values),))


@pytest.mark.parametrize("step", [0, 7])
def test_one_huge_gradient_is_named_if_nothing_is_learned_after_it(step: int) -> None:
    """With its step, whether it is the first one or not."""
    (cause,) = early_gradient_remains(evidence([1e4 if one == step else 0.4 for one in range(60)]))
    assert cause.kind == "optimizer-state"
    assert f"The gradient norm of step {step} was 1e+04; later it is about 0.4." in cause.evidence
    assert any("clip=0.4" in one for one in cause.remedies)


@pytest.mark.parametrize(
    "known",
    [
        evidence([1e4, *[0.4] * 59], loss=LEARNING),
        evidence([40.0, *[0.4] * 59]),
        evidence([1e4, *[0.4] * 59], kind="SGD"),
        evidence([1e4 * 0.8**step + 0.4 for step in range(60)]),
        evidence([*[1e4] * 10, *[0.4] * 50]),
    ],
    ids=["it learns", "a hundredth", "without squares", "a decay over several steps", "a plateau of ten steps"],
)
def test_other_runs_are_not(known: Evidence) -> None:
    """Gradients that have decreased over several steps are those of a loss or of weights that have changed."""
    assert not [*early_gradient_remains(known)]


def test_the_steps_are_as_short_as_those_of_the_optimizer_of_torch() -> None:
    """The factor that is named is that between the updates of Adam with and without the first gradient."""
    norms = [1e4, *[0.4] * 59]
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=1.0, betas=(0.9, 0.999))
    for norm in norms:
        weight.grad = torch.tensor([norm], dtype=torch.float64)
        before = weight.item()
        optimizer.step()
    update = before - weight.item()  # 1.0 without the first gradient, of which momentum still holds a part
    left = 0.1 * 1e4 * 0.9**59 / (0.4 + 0.1 * 1e4 * 0.9**59)
    (cause,) = early_gradient_remains(evidence(norms))
    named = re.search(r"about ([\d.e+]+) times as short", cause.evidence[1])
    assert named is not None
    assert float(named[1]) == pytest.approx((1 - left) ** -1 / update, rel=0.05)
