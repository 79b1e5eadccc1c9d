"""Recurrent cells that are written as a loop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightning_gradexplode.diagnose.causes.loops import carried_state, cell_by_hand
from lightning_gradexplode.records import Activation, Evidence, Experiments, Replay
from tests.diagnose.evidence import batch, calm, diverged, field, finding, history, labels, parameter, run


def looped(state: float, added: float = 0.8, **parts: object) -> Evidence:
    """Return the evidence of a loop of twelve steps, by the size of its first state and of what a step adds."""
    activations = (
        Activation("inner", "Linear", largest=99.0, rms=1.3 * state, first_rms=state, calls=12),
        Activation("inside", "Linear", largest=99.0, rms=added, first_rms=added, calls=12),
        Activation("head", "Linear", largest=99.0, rms=5.0, first_rms=5.0, calls=1),
    )
    facts = run(parameters=(parameter("inside.weight", (16, 2)), parameter("inner.weight", (16, 16), gain=1.03)))
    return diverged(replay=Replay("finite", activations=activations), run=facts, **parts)


def test_a_loop_that_begins_with_a_large_state_has_kept_that_of_earlier_batches() -> None:
    """Its remedy is to reset it."""
    cause = carried_state(looped(70.0))
    assert cause is not None
    assert (cause.kind, cause.where) == ("recurrence", "inner.weight")
    assert "zeros_like" in cause.remedies[0]


@pytest.mark.parametrize("state", [0.0, 0.5, 10.0])
def test_a_state_that_is_about_as_large_as_what_a_step_adds_is_no_cause(state: float) -> None:
    """A state of zeros is the usual start."""
    assert carried_state(looped(state)) is None


def test_a_large_state_of_weights_whose_step_overshoots_is_no_cause() -> None:
    """The learning rate has made the weights large."""
    overshoot = Experiments(line_search=((0.0, 2.0), (0.01, 1.9), (0.1, 3.0), (1.0, 90.0)))
    assert carried_state(looped(70.0, experiments=overshoot)) is None


def by_hand(out: int, wide: int, growth: float = 1e4, shape: tuple[int, ...] = (16, 100, 4)) -> Evidence:
    """Return the evidence of a layer and of a gradient that jumps."""
    values = calm(30)
    values["grad_norm"][-1] = 0.5 * growth
    return Evidence(
        29,
        29,
        findings=(finding("gradient-growth", 29),),
        history=(history(values),),
        run=run(parameters=(parameter("cell.weight", (out, wide)),)),
        batch=batch(field(shape=shape), labels()),
    )


@pytest.mark.parametrize(("out", "gates"), [(24, 1), (72, 3), (96, 4)])
def test_a_layer_over_features_and_state_is_a_cell(out: int, gates: int) -> None:
    """With one, three or four gates of 24 numbers, over four features of a time step."""
    cause = cell_by_hand(by_hand(out, 28))
    assert cause is not None
    assert (cause.kind, cause.where) == ("recurrence", "cell.weight")
    assert f"returns {gates} times as many" in cause.evidence[0]
    assert "torch.tanh" in cause.remedies[0]


@pytest.mark.parametrize(
    "evidence",
    [
        by_hand(30, 28),
        by_hand(96, 4),
        by_hand(96, 28, growth=20.0),
        by_hand(96, 28, shape=(16, 4)),
        replace(by_hand(96, 28), replay=Replay("finite", activations=(Activation("cell", "Linear", 1.0, 2.0),))),
    ],
    ids=["other outputs", "features alone", "a calm gradient", "no sequence", "executed once"],
)
def test_other_layers_are_no_cell(evidence: Evidence) -> None:
    """Nor is one whose gradient has not exploded."""
    assert cell_by_hand(evidence) is None
