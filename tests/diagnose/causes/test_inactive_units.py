"""Units that large updates have made inactive."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode.diagnose import diagnose, diagnose_calm
from lightning_gradexplode.diagnose.causes.inactive_units import (
    units_became_inactive,
    units_never_active,
    units_stay_inactive,
    weights_start_at_zero,
)
from lightning_gradexplode.records import Evidence, History, OwnFunction, Severity
from tests.diagnose.evidence import calm, finding, history, run

NAMES = ("body.weight", "head.weight")
START = math.sqrt(sum(one.std**2 * math.prod(one.shape) for one in run().parameters))


def evidence(zero: tuple[str, ...] = NAMES, died: int = 30, growth: float = 3.0, **values: list[float]) -> Evidence:
    """Return the evidence of sixty steps in which the gradients of some parameters become zero."""
    grown = [START * min(1 + (growth - 1) * step / 30, growth) for step in range(60)]
    kept = history({**calm(60, rate=0.1), "weight_norm": grown, **values})
    norms = np.ones((60, 2), dtype=np.float32)
    for place, name in enumerate(NAMES):
        if name in zero:
            norms[died:, place] = 0
    warned = (finding("zero-gradient", 59, Severity.WARNING, "body.weight"),)
    return Evidence(59, 59, warned, run(), (History(kept.step, kept.values, NAMES, norms),))


def test_units_that_large_updates_have_made_inactive_are_of_the_rate() -> None:
    """The last step with a gradient is stated, and activations that always pass a gradient are advised."""
    (cause, *_) = diagnose(evidence()).causes
    assert cause.kind == "learning-rate"
    assert "`body.weight` had a gradient until step 29" in cause.evidence[0]
    assert any("nn.LeakyReLU()" in one for one in cause.remedies)


@pytest.mark.parametrize(
    ("functions", "died", "named"), [(("Spike",), 0, True), ((), 0, False), (("Spike",), 3, False)]
)
def test_a_function_that_has_never_passed_a_gradient_has_units_that_are_never_active(
    functions: tuple[str, ...], died: int, named: bool
) -> None:
    """As the spikes of neurons whose threshold is above all that reaches them; its derivative is the user's own."""
    known = replace(evidence(died=died, growth=1.0), own_functions=tuple(map(OwnFunction, functions)))
    found = units_never_active(known)
    assert (found is not None) is named
    if named:
        cause = diagnose(known).causes[0]
        assert (cause.kind, cause.where) == ("initialization", "`Spike`")


@pytest.mark.parametrize(
    ("zeros", "without_gradient", "named"),
    [
        (NAMES, NAMES, True),  # both factors of an adapter, or all weights of a network
        (NAMES, ("body.weight",), False),  # one of them gets a gradient, and then the other
        (("head.weight",), NAMES, False),
        ((), NAMES, False),
    ],
)
def test_weights_that_all_start_at_zero_and_never_get_a_gradient_are_named(
    zeros: tuple[str, ...], without_gradient: tuple[str, ...], named: bool
) -> None:
    """A single factor may start at zero, as that of a low-rank adapter; two of them stay there."""
    facts = run(parameters=tuple(replace(one, std=0.0) if one.name in zeros else one for one in run().parameters))
    known = replace(evidence(zero=without_gradient, died=0, growth=1.0), run=facts)
    found = weights_start_at_zero(known)
    assert (found is not None) is named
    if named:
        cause = diagnose(known).causes[0]
        assert (cause.kind, cause.where) == ("initialization", "body.weight")


@pytest.mark.parametrize(
    "known",
    [
        evidence(growth=1.0),
        evidence(zero=("head.weight",)),
        evidence(died=0),
        evidence(died=50),
        evidence(loss=[2.0 * 0.97**step for step in range(60)]),
    ],
    ids=["small updates", "the last layer", "never had one", "for ten steps", "it learns"],
)
def test_other_zeros_are_not(known: Evidence) -> None:
    """An unused head, frozen layers, zeros that come and go, and parts that a network does without."""
    assert units_became_inactive(known) is None


def test_a_frozen_layer_has_no_units_that_became_inactive() -> None:
    """A training may freeze its body early, after large updates."""
    assert units_became_inactive(replace(evidence(), frozen=("body.weight",))) is None
    assert not list(units_stay_inactive(replace(plateau(), frozen=("body.weight",))))


def test_a_high_rate_need_not_make_the_weights_longer() -> None:
    """Steps in changing directions make units inactive as well."""
    facts: dict[str, Any] = {"learning_rate": [1.0] * 60}
    assert units_became_inactive(evidence(growth=1.0, **facts)) is not None
    assert units_became_inactive(replace(evidence(growth=1.0, **facts), findings=())) is None


def frozen() -> Evidence:
    """Return the evidence of a training whose weights have doubled in 150 steps, after which the body is frozen."""
    losses = [2.0 * 0.98**step for step in range(150)] + [0.1] * 100
    kept = history({**calm(250), "weight_norm": [*np.linspace(START, 3 * START, 150), *[3 * START] * 100]})
    norms = np.ones((250, 2), dtype=np.float32)
    norms[150:, 0] = 0
    return Evidence(249, 249, (), run(), (History(kept.step, {**kept.values, "loss": np.array(losses)}, NAMES, norms),))


def plateau(zero: tuple[str, ...] = NAMES[:1], growth: float = 3.0, falls: float = 1.0, level: float = 4.0) -> Evidence:
    """Return the evidence of a run without findings: the loss falls for fifteen steps, until gradients become zero."""
    losses = [30.0 - 1.8 * step for step in range(15)] + [level * falls**step for step in range(105)]
    kept = history(
        {**calm(120, rate=0.02), "weight_norm": [*np.linspace(1.0, growth, 20) * START, *[growth * START] * 100]}
    )
    norms = np.ones((120, 2), dtype=np.float32)
    norms[15:, [NAMES.index(name) for name in zero]] = 0
    return Evidence(119, 119, (), run(), (History(kept.step, {**kept.values, "loss": np.array(losses)}, NAMES, norms),))


def test_a_loss_that_stays_where_large_updates_have_left_it_is_of_the_rate() -> None:
    """The loss has fallen by what the biases of the head have learned, so that no detector finds anything."""
    (cause,) = units_stay_inactive(plateau())
    assert (cause.kind, cause.confidence) == ("learning-rate", 0.75)
    assert "the loss of the 105 steps since then has not come down" in cause.evidence[1]
    diagnosis = diagnose_calm(plateau())
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "learning-rate"


@pytest.mark.parametrize(
    "known",
    [
        plateau(zero=()),
        plateau(zero=NAMES[1:]),
        plateau(growth=1.5),
        plateau(falls=0.98),
        plateau(zero=NAMES, level=0.0),
        frozen(),
    ],
    ids=["gradients stay", "the first layer learns", "small updates", "the loss still falls", "all learned", "frozen"],
)
def test_no_rate_is_named_of_frozen_layers_and_other_plateaus(known: Evidence) -> None:
    """A body that is frozen after some steps, the end of a training, and parts that a network does without."""
    assert not list(units_stay_inactive(known))
