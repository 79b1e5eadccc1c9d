"""How outputs and error gradients grow over the layers of a network before any update."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradexplode.diagnose.layers import DEEP, has_initial_scale, layers
from lightning_gradexplode.diagnose.repeated_weights import recurrent_parameters
from lightning_gradexplode.records import Evidence
from lightning_gradexplode.records.backward_gain import modules_of

COMPOUNDS = 100.0
"""Gain over all layers from which it has compounded."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How a quantity grows over the layers of a network.

    Args:
        count: Number of layers.
        total: Its growth over all of them.
        words: What grows, and in which direction.
        where: The module at its end, None if that is not known.
    """

    count: int
    total: float
    words: str
    where: str | None = None

    @property
    def per_layer(self) -> float:
        """Its mean growth in one layer."""
        return self.total ** (1 / max(self.count - 1, 1)) if 0 < self.total < math.inf else 0.0


def steepest_profile(evidence: Evidence) -> Profile | None:
    """Return the profile that grows the most over a deep network, None if none compounds.

    The profiles of the replay are used only while the weights have their initial scale.
    """
    found = [
        backward_gain(evidence),
        _of_first_pass(evidence),
        *(_of_replay(evidence) if has_initial_scale(evidence) else ()),
    ]
    deep = [
        one
        for one in found
        if one is not None and one.count >= DEEP and COMPOUNDS <= one.total < math.inf and one.per_layer < 10
    ]
    return max(deep, key=lambda one: one.total, default=None)


def _of_replay(evidence: Evidence) -> list[Profile]:
    replay = evidence.replay
    if replay is None:
        return []
    recurrent = {one.module for one in recurrent_parameters(evidence.run)}
    names = {one.module for one in layers(evidence.run)} - recurrent
    outputs = [one for one in replay.activations if one.module in names and one.calls == 1]
    sizes = [one.rms for one in outputs if 0 < one.rms < math.inf]
    slopes = [one.gradient_norm for one in outputs if one.gradient_norm and math.isfinite(one.gradient_norm)]
    profiles = []
    if len(sizes) > 1:
        profiles.append(Profile(len(sizes), sizes[-1] / sizes[0], "the outputs grow"))
    if len(slopes) > 1:
        profiles.append(Profile(len(slopes), slopes[0] / slopes[-1], "the error gradient grows on its way back"))
    return profiles


def _of_first_pass(evidence: Evidence) -> Profile | None:
    """Return how what the layers take grows from the second one on, in the first forward pass of the run."""
    names = {one.name for one in layers(evidence.run)} - {one.name for one in recurrent_parameters(evidence.run)}
    sizes = [one.first_rms for one in evidence.applied if one.name in names and one.calls == 1 and one.first_rms][1:]
    return Profile(len(sizes), sizes[-1] / sizes[0], "the outputs grow") if len(sizes) > 1 else None


def backward_gain(evidence: Evidence) -> Profile | None:
    """Return the gain that its detector has found before the first update, None if it has found none."""
    for one in evidence.findings:
        count, is_early = modules_of(one), one.step <= evidence.run.first_step
        if count is not None and is_early and not recurrent_parameters(evidence.run):
            return Profile(count, one.value, "the error gradient grows on its way back", one.where)
    return None
