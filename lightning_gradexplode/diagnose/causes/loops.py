"""Recurrent cells that are written as a loop: a state that is kept for too long, or that no gate bounds."""

from __future__ import annotations

from lightning_gradexplode.diagnose.batch import inputs
from lightning_gradexplode.diagnose.layers import DEEP, layers
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.remedies.recurrence import recurrence_remedies
from lightning_gradexplode.diagnose.repeated_weights import recurrent_parameters
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence

COMPOUNDED = 100.0
"""Growth of a gradient from which a gain per time step has compounded."""

CARRIED = 20.0
"""So many times what a step adds, the state that a loop begins with comes from earlier batches."""


def carried_state(evidence: Evidence) -> Cause | None:
    """Return the cause if a loop begins with a state that is far larger than what it adds to it."""
    replay, search = evidence.replay, line_search(evidence)
    if replay is None or not trend(evidence).has_diverged or (search is not None and search.overshoots):
        return None
    square = {one.module: one for one in layers(evidence.run) if one.shape[0] == one.shape[-1]}
    looped = [one for one in replay.activations if one.calls >= DEEP and one.first_rms]
    added = [one.first_rms or 0.0 for one in looped if one.module not in square]
    carried = [one for one in looped if one.module in square]
    worst = max(carried, key=lambda one: one.first_rms or 0.0, default=None)
    if worst is None or not added or not (worst.first_rms or 0.0) > CARRIED * max(added):
        return None
    times = (worst.first_rms or 0.0) / max(added)
    return Cause(
        "recurrence",
        square[worst.module].name,
        (
            f"`{worst.module}` is executed {worst.calls} times in one forward pass, and its first result is already "
            f"{times:.3g} times what a step adds: the state is that of earlier batches, over which it has grown.",
        ),
        0.7,
        (
            "reset the state at the start of each sequence: `state = torch.zeros_like(state)`",
            *recurrence_remedies(evidence, square[worst.module], False, worst.calls),
        ),
    )


def cell_by_hand(evidence: Evidence) -> Cause | None:
    """Return the cause if the gradient explodes, and the first layer takes a time step's features with a state.

    Such a layer returns the state once, or once for each of three or four gates.
    """
    growth, replay, weights = trend(evidence).gradient_growth, evidence.replay, layers(evidence.run)
    sequence = next((one for one in inputs(evidence) if len(one.shape) == 3 and one.shape[1] >= DEEP), None)
    if sequence is None or not weights or not growth >= COMPOUNDED or recurrent_parameters(evidence.run):
        return None
    (steps, features), cell = sequence.shape[1:], weights[0]
    looped = [one.module for one in replay.activations if one.calls >= DEEP] if replay is not None else []
    if replay is not None and replay.activations and cell.module not in looped:
        return None
    state = cell.shape[-1] - features
    if len(cell.shape) != 2 or state < 2 or cell.shape[0] not in (state, 3 * state, 4 * state):
        return None
    gates = cell.shape[0] // state
    return Cause(
        "recurrence",
        cell.name,
        (
            f"`{cell.name}` takes the {features} features of a time step and {state} further numbers, and returns "
            f"{gates} times as many, as a recurrent cell does; an input has {steps} time steps.",
            f"The gradient norm has grown {growth:.3g} times.",
        ),
        0.55,
        (
            "bound the state: `torch.tanh` in place of a rectified or linear unit",
            *recurrence_remedies(evidence, cell, gates > 1, steps),
        ),
    )
