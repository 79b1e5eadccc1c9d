"""Factors and embeddings that start far above one, and few modules of which each multiplies the gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose.causes.initialization import initialization
from lightning_gradexplode.records import Evidence, Finding, ModuleFacts, ParameterFacts, Severity
from tests.diagnose.evidence import calm, failed, finding, history, parameter, run

BODY = parameter("body.weight", (32, 8))


def starts_with(own: ParameterFacts, loss: float = 300.0, norm: float = 2000.0) -> Evidence:
    """Return the evidence of a run with a warning at its first step."""
    values = calm(3)
    values["loss"][0], values["grad_norm"][0] = loss, norm
    return Evidence(
        0,
        0,
        findings=(finding("backward-gain", 0, Severity.WARNING),),
        history=(history(values),),
        run=run(parameters=(BODY, own)),
    )


@pytest.mark.parametrize(
    ("own", "start"),
    [
        (parameter("words.weight", (20, 32), module_kind="Embedding", std=15.0, fan_in=None), "std=0.02"),
        (ParameterFacts("scales.0", (32,), module="scales", std=1e5, largest=1e5), "model.scales[0], 0.1"),
        (ParameterFacts("temperature", (), std=400.0, largest=400.0), "model.temperature, 0.1"),
    ],
    ids=["embedding", "factor", "number"],
)
def test_a_factor_far_above_one_with_a_huge_first_gradient_is_a_start_on_a_wrong_scale(
    own: ParameterFacts, start: str
) -> None:
    """It is the place, and its remedy is a start on the usual scale."""
    cause = initialization(starts_with(own))
    assert cause is not None
    assert (cause.kind, cause.where) == ("initialization", own.name)
    assert start in cause.remedies[0]


def test_a_large_factor_with_a_usual_first_gradient_is_no_cause() -> None:
    """A constant of nature may be large."""
    own = ParameterFacts("gravity", (), std=981.0, largest=981.0)
    assert initialization(starts_with(own, loss=0.7, norm=0.5)) is None


def test_a_factor_far_above_one_is_named_where_not_even_the_first_loss_is_finite() -> None:
    """A matrix that was never initialized may hold numbers such as 1e20; constant elements would stay equal."""
    own = ParameterFacts("mixing", (8, 1), std=1e20, largest=1e20)
    lost = failed(0, run=run(parameters=(BODY, own)))
    cause = initialization(lost)
    assert cause is not None
    assert cause.where == "mixing"
    assert "nn.init.normal_(model.mixing, std=0.02)" in cause.remedies[0]
    assert "nan" not in " ".join(cause.evidence)
    assert initialization(failed(0, run=run(parameters=(BODY, replace(own, std=0.1, largest=0.3))))) is None


@pytest.mark.parametrize(
    "own",
    [
        parameter("words.weight", (20, 32), module_kind="Embedding", std=1.0, fan_in=None),
        ParameterFacts("scale", (), std=14.3, largest=14.3),
        ParameterFacts("head.bias", (32,), module="head", std=500.0, largest=500.0),
    ],
    ids=["default embedding", "inverse temperature", "bias"],
)
def test_usual_scales_are_no_cause(own: ParameterFacts) -> None:
    """Those of torch's embedding, of contrastive models and of biases that start at the level of targets."""
    assert initialization(starts_with(own)) is None


def steep(count: int, growth: float, step: int = 0) -> Evidence:
    """Return the evidence of a gradient that grows over some modules."""
    message = f"from the last of {count} modules to the first the gradient grows {growth:g} times"
    seen = Finding(step, "backward-gain", Severity.WARNING, "layers.2", growth, 100.0, message)
    modules = tuple(ModuleFacts(f"layers.{place}", "Linear", "linear") for place in range(count))
    return Evidence(step, step, findings=(seen,), history=(history(calm(3)),), run=run(modules=modules))


def test_few_modules_that_each_multiply_the_gradient_start_on_a_wrong_scale() -> None:
    """As in a network of sines of a high frequency."""
    cause = initialization(steep(5, 3e5))
    assert cause is not None
    assert (cause.kind, cause.where) == ("initialization", "layers.2")
    assert "23.4 times a module" in cause.evidence[0]


@pytest.mark.parametrize(
    ("count", "growth", "step"), [(5, 200.0, 0), (20, 3e5, 0), (2, 1e3, 0), (5, 3e5, 1), (5, 3e5, 9)]
)
def test_small_gains_many_modules_and_later_steps_are_no_steep_start(count: int, growth: float, step: int) -> None:
    """Gains that compound over many modules are one of depth, and after an update they may come from it."""
    assert initialization(steep(count, growth, step)) is None
