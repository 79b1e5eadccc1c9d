"""Weights and scales that start too large."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.diagnose.causes.initialization import (
    initialization,
    scale_without_logarithm,
    tied_embeddings,
)
from lightning_gradexplode.records import Evidence, LossTerm, Replay
from tests.diagnose.evidence import batch, calm, diverged, failed, field, history, operand, parameter, run


def scaled(name: str, value: float, loss: float) -> Evidence:
    """Return the evidence of a calm run with a number that is a parameter, and a first loss."""
    facts = run(parameters=(parameter("body.weight", (32, 8)), parameter(name, (1,), std=value, largest=value)))
    return Evidence(0, 29, (), facts, (history(calm(loss=loss)),))


def test_a_logarithm_of_a_scale_that_starts_as_the_scale_is_named() -> None:
    """1/0.07 in place of its logarithm multiplies logits by more than a million."""
    cause = scale_without_logarithm(scaled("logit_scale", 1 / 0.07, 4e5))
    assert cause is not None
    assert cause.where == "logit_scale"
    assert f"{math.exp(1 / 0.07):.3g}" in cause.evidence[0]
    assert ".log()" in cause.remedies[0]


@pytest.mark.parametrize(
    ("name", "value", "loss"),
    [("logit_scale", math.log(1 / 0.07), 4e5), ("logit_scale", 1 / 0.07, 3.0), ("gamma", 1 / 0.07, 4e5)],
    ids=["usual value", "usual loss", "another name"],
)
def test_other_numbers_are_not(name: str, value: float, loss: float) -> None:
    """A number of a usual size, one that makes no large loss, or one that is no logarithm."""
    assert scale_without_logarithm(scaled(name, value, loss)) is None


def test_parameters_that_are_nan_from_the_start_are_named() -> None:
    """Where the first loss is lost; not where a later one is, nor where no root mean square is known."""
    weights = (parameter("body.weight", (8, 8)), parameter("mixing", (8, 8), std=float("nan")))
    first, later = (initialization(failed(step, run=run(parameters=weights))) for step in (0, 20))
    assert first is not None
    assert (first.where, first.confidence) == ("mixing", 0.95)
    assert "nn.init.normal_(model.mixing" in first.remedies[0]
    unknown = initialization(failed(0, run=run(parameters=weights[1:])))
    assert [one is None or one.where != "mixing" for one in (later, unknown)] == [True, True]


@pytest.mark.parametrize(("scale", "named"), [(1.0, True), (1e4, False)], ids=["usual data", "large data"])
def test_weights_of_a_formula_of_the_users_own_are_what_is_left(scale: float, named: bool) -> None:
    """Where the loss starts huge on usual data; how such a formula multiplies its weights is not known."""
    weights = parameter("coefficients", (12, 12, 5), std=0.5, module="", module_kind="Polynomials")
    numbers = batch(field("[0]", std=scale), field("[1]"))
    first = history({"loss": [2e32], "grad_norm": [5e33]})
    found = initialization(Evidence(0, 0, (), run(parameters=(weights,)), (first,), batch=numbers))
    assert (found is not None and found.where == "coefficients") == named


@pytest.mark.parametrize(("least", "is_named"), [(-250.0, True), (-11.6, False)])
def test_an_embedding_that_is_the_output_layer_is_too_large_only_with_large_outputs(
    least: float, is_named: bool
) -> None:
    """Behind a layer that lowers their scale, outputs are near those of a guess: a logarithm of 1 / 26 is -3.3."""
    words = parameter("words.weight", (26, 32), module_kind="Embedding", std=1.0, fan_in=None)
    term = LossTerm("nll_loss", (operand(least=least, greatest=-0.1, shape=(16, 26)), operand(shape=(16,))), 6.1)
    replay = Replay("not-possible", losses=(term,))
    facts = run(parameters=(words, parameter("body.weight", (32, 32))))
    known = diverged(run=facts, replay=replay, first_losses=(term,))
    assert (words in tied_embeddings(known)) is is_named
