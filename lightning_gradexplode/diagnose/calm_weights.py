"""Weights with which a run without an incident learns nothing: too large, too small, or without a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lightning_gradexplode.diagnose.causes.initialization import large_weights, scale_without_logarithm
from lightning_gradexplode.diagnose.curves import gradient_profile, signs
from lightning_gradexplode.diagnose.layers import gain_of, layers, normalized_share, usual_std
from lightning_gradexplode.diagnose.learning import ENOUGH, LEARNED, LEARNED_LITTLE, learned
from lightning_gradexplode.records import Cause, Evidence, History

VANISHED = 1e-3
"""Share of the largest gradient of a parameter below which the smallest has vanished."""

SMALL_GAIN = 0.1
"""Root mean square of a weight times the root of its inputs below which it shrinks them; 0.58 is torch's default."""


def scale_too_large(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if a logarithm of a scale starts as the scale itself."""
    cause = scale_without_logarithm(evidence)
    if cause is not None:
        yield cause


def weights_too_large(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if weights multiply what they take, and hardly anything is learned."""
    cause = large_weights(evidence) if learned(evidence) > LEARNED else None
    if cause is not None:
        yield cause


def weights_without_gradient(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if most gradients have always been zero, and weights or biases explain it."""
    is_seen = "zero-gradient" in signs(evidence)
    still = {name for history in evidence.history for name in _never_moved(history, 10 if is_seen else ENOUGH)}
    count = sum(len(history.parameters) for history in evidence.history)
    if (learned(evidence) <= LEARNED and not is_seen) or not 2 * len(still) >= count > len(still):
        return
    said = f"The gradients of {len(still)} of {count} parameters have been exactly zero at every step."
    zero = [one for one in layers(evidence.run) if one.std == 0 and one.name in still]
    if len(zero) > 1:
        yield Cause(
            "initialization",
            zero[0].name,
            (f"`{zero[0].name}` and {len(zero) - 1} more weights start at exactly zero.", said),
            0.9,
            ("start them at random instead of zero: `nn.init.kaiming_normal_(layer.weight)`",),
        )
    biases = [one for one in evidence.run.parameters if one.name.endswith("bias") and one.name in still]
    worst = max(biases, key=lambda one: one.std if math.isfinite(one.std) else 0.0, default=None)
    if worst is not None and worst.std >= 10:
        yield Cause(
            "initialization",
            worst.name,
            (f"`{worst.name}` starts with a root mean square of {worst.std:.3g}: its units are never active.", said),
            0.85,
            ("start its biases at zero: `nn.init.zeros_(layer.bias)`",),
        )


def _never_moved(history: History, least: int) -> list[str]:
    """Return the parameters whose gradient was zero at each step, of at least so many."""
    norms = history.parameter_grad_norm
    if norms.ndim != 2 or len(norms) < least:
        return []
    return [name for name, column in zip(history.parameters, norms.T, strict=True) if not np.any(column)]


def weights_too_small(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if weights shrink what they take so much that hardly a gradient comes through."""
    small = [one for one in layers(evidence.run) if 0 < gain_of(one) < SMALL_GAIN]
    norms = gradient_profile(evidence, first=True)
    held = min((norms[one.name] for one in small if one.name in norms), default=math.inf)
    if len(small) < 2 or normalized_share(evidence.run) >= 0.5 or held > VANISHED * max(norms.values(), default=0.0):
        return
    if learned(evidence) > LEARNED_LITTLE:
        worst = min(small, key=gain_of)
        yield Cause(
            "initialization",
            worst.name,
            (
                f"`{worst.name}` starts with a root mean square of {worst.std:.3g}; {usual_std(worst):.3g} would keep "
                f"the scale of its inputs, of which {gain_of(worst):.2g} is left. {len(small)} weights are as small.",
                f"Of the first gradient, a norm of {held:.2g} has come through to the weights that had the least of "
                f"it; the loss is {learned(evidence):.0%} of what it was.",
            ),
            0.75,
            ("start the weights on the usual scale: `nn.init.kaiming_normal_(layer.weight)`",),
        )
