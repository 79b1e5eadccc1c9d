"""How often the weights are looked at."""

from __future__ import annotations

import math

import pytest

from lightning_gradexplode.detect.adaptive_interval import AdaptiveInterval
from tests.detect.steps import noise, record, through_checkpoint


def looks(attention: AdaptiveInterval, norms: list[float], weights: list[float], first: int = 0) -> list[int]:
    """List the steps at which the weights are looked at, with these gradient norms and these norms of the weights."""
    seen = []
    for step, (norm, weight) in enumerate(zip(norms, weights, strict=True), first):
        if attention.due(record(step).loss, norm):
            seen.append(step)
            attention.measured(weight)
    return seen


def test_gaps_double_while_nothing_moves() -> None:
    """At the first step, then after 1, 2, 4 and 8 steps, and every 8 from there on."""
    assert looks(AdaptiveInterval(), [1.0] * 40, [10.0] * 40) == [0, 1, 3, 7, 15, 23, 31, 39]


def test_weights_that_move_are_looked_at_each_step() -> None:
    """Ten percent a step are no calm."""
    assert looks(AdaptiveInterval(), [1.0] * 20, [1.1**step for step in range(20)]) == list(range(20))


@pytest.mark.parametrize("norm", [5.0, math.inf, math.nan])
def test_a_wild_gradient_draws_a_look_at_once(norm: float) -> None:
    """The very step at which the norm is wild is looked at, and it alone."""
    calm = looks(AdaptiveInterval(), [1.0] * 60, [10.0] * 60)
    wild = looks(AdaptiveInterval(), [*[1.0] * 42, norm, *[1.0] * 17], [10.0] * 60)
    assert 42 not in calm
    assert 42 in wild


@pytest.mark.parametrize("loss", [3.0, math.inf])
def test_a_wild_loss_draws_a_look_at_once(loss: float) -> None:
    """The gradients may be clipped where they are seen."""
    attention = AdaptiveInterval()
    looks(attention, [1.0] * 42, [10.0] * 42)
    assert attention.due(loss, record(42).grad_norm)


def test_calm_noise_costs_little() -> None:
    """In a calm run with noisy gradients less than a fifth of the steps are looked at."""
    assert len(looks(AdaptiveInterval(), noise(1000, 0.3), [10.0] * 1000)) < 200


def test_a_start_is_wanted_until_weights_were_seen() -> None:
    """Weights that could not be measured, or were not finite, are no start."""
    attention = AdaptiveInterval()
    assert attention.has_no_measurement
    attention.measured(math.nan)
    assert attention.has_no_measurement
    attention.measured(1.0)
    assert not attention.has_no_measurement


def test_looks_go_on_through_a_checkpoint() -> None:
    """A saved and loaded state looks at the same steps as one that went on."""
    norms, weights = noise(100, 0.5), noise(100, 0.02, seed=1)
    whole = looks(AdaptiveInterval(), norms, weights)
    first, second = AdaptiveInterval(), AdaptiveInterval()
    half = looks(first, norms[:50], weights[:50])
    second.load_state_dict(through_checkpoint(first.state_dict()))
    assert half + looks(second, norms[50:], weights[50:], first=50) == whole
