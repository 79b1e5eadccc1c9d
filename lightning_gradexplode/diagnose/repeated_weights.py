"""The weights that one forward pass applies again and again."""

from __future__ import annotations

from lightning_gradexplode.diagnose.curves import curve
from lightning_gradexplode.diagnose.layers import DEEP, gain_of, layers
from lightning_gradexplode.records import Evidence, ParameterFacts, Replay, RunFacts

MAX_TRAINABLE_NORM = 100.0
"""Gradient norm of the first step up to which a network can be trained from its initial weights."""

MAX_TRIED_WEIGHTS = 2
"""Number of weights whose other initializations are tried."""


def own_matrices(run: RunFacts) -> list[ParameterFacts]:
    """Return the square matrices that are parameters of the user's own modules."""
    roles = {one.name: one.role for one in run.modules}
    return [
        one
        for one in layers(run)
        if len(one.shape) == 2 and one.shape[0] == one.shape[1] and roles.get(one.module, "other") == "other"
    ]


def recurrent_parameters(run: RunFacts) -> list[ParameterFacts]:
    """Return the recurrent matrices."""
    return [one for one in run.parameters if one.spectral_radius is not None or "weight_hh" in one.name]


def explodes_at_first(evidence: Evidence) -> bool:
    """Return whether the gradient before any update is larger than that of a network that can be trained."""
    norm = curve(evidence, "grad_norm").at(evidence.run.first_step)
    return norm is None or norm > MAX_TRAINABLE_NORM


def is_gated(parameter: ParameterFacts, run: RunFacts) -> bool:
    """Return whether a recurrent matrix belongs to an LSTM or a GRU."""
    kinds = [one.kind for one in run.modules if one.name == parameter.module] or [parameter.module_kind]
    return any(word in kind.lower() for kind in kinds for word in ("lstm", "gru"))


def weights_to_try(run: RunFacts, replay: Replay) -> list[str]:
    """Return the weights without gates that are or may be applied again and again, those with the largest gain first.

    None are tried where the gradient is of a usual size.

    Args:
        run: What is known of the run.
        replay: The replay, which has counted the calls of each module.
    """
    if replay.grad_norm is not None and replay.grad_norm <= MAX_TRAINABLE_NORM:
        return []
    looped = {one.module for one in replay.activations if one.calls >= DEEP}
    square = [one for one in layers(run) if one.module in looped and one.shape[0] == one.shape[-1]]
    found = [*square, *(one for one in recurrent_parameters(run) if not is_gated(one, run)), *own_matrices(run)]
    matrices = {one.name: gain_of(one) for one in found if len(one.shape) == 2}
    return sorted(matrices, key=lambda name: -matrices[name])[:MAX_TRIED_WEIGHTS]
