"""A gain per layer that compounds over depth."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import gradient_profile
from lightning_gradexplode.diagnose.layers import (
    DEEP,
    first_numbers,
    gain_of,
    has_initial_scale,
    is_early,
    is_rectified,
    is_trained,
    layers,
    normalized_share,
)
from lightning_gradexplode.diagnose.repeated_weights import recurrent_parameters
from lightning_gradexplode.records import Cause, Evidence

COMPOUNDS = 100.0
"""Gain over all layers from which it has compounded."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How a quantity grows over the layers of a network.

    Args:
        count: Number of layers.
        total: Its growth over all of them.
        words: What grows, and in which direction.
    """

    count: int
    total: float
    words: str

    @property
    def per_layer(self) -> float:
        """Its mean growth in one layer."""
        return self.total ** (1 / max(self.count - 1, 1)) if 0 < self.total < math.inf else 0.0


def depth(evidence: Evidence) -> Cause | None:
    """Return the cause if the gain per layer compounds over a deep network."""
    best = steepest_profile(evidence)
    if best is None or is_trained(evidence):
        return None
    confidence = 0.8 if best.total >= 1e3 else 0.65
    if not is_early(evidence):
        confidence *= 0.6
    names = [one.module or one.name for one in layers(evidence.run)]
    return Cause(
        "depth",
        names[0] if names else None,
        (
            f"Over {best.count} layers {best.words} {best.total:.3g} times, {best.per_layer:.3g} times a layer.",
            *first_numbers(evidence),
        ),
        confidence,
        _remedies(evidence, best),
    )


def steepest_profile(evidence: Evidence) -> Profile | None:
    """Return the profile that grows the most over a deep network, None if none compounds.

    The outputs of the replay count while the weights have the scale of the start.
    """
    found = [
        _of_gradients(evidence),
        _of_finding(evidence),
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


def _of_finding(evidence: Evidence) -> Profile | None:
    """Return what the detector of backward gain saw at the first steps."""
    for one in evidence.findings:
        early = one.step <= evidence.run.first_step
        count = re.search(r"the last of (\d+) modules", one.message)
        if one.sign == "backward-gain" and early and count and not recurrent_parameters(evidence.run):
            return Profile(int(count[1]), one.value, "the error gradient grows on its way back")
    return None


def _of_gradients(evidence: Evidence) -> Profile | None:
    norms = gradient_profile(evidence, first=True)
    recurrent = {one.name for one in recurrent_parameters(evidence.run)}
    if evidence.run.parameters:
        names = [one.name for one in layers(evidence.run) if one.name in norms and one.name not in recurrent]
    else:
        names = [name for name in norms if name.endswith("weight")]
    values = [norms[name] for name in names if norms[name] > 0]
    if len(values) < 2:
        return None
    return Profile(len(values), values[0] / values[-1], "the gradients of the weights grow on their way back")


def _remedies(evidence: Evidence, profile: Profile) -> tuple[str, ...]:
    run = evidence.run
    rectified = is_rectified(run)
    advice = []
    if normalized_share(run) < 0.5:
        kinds = [one.kind for one in run.modules]
        convolved = next((one[-2:].lower() for one in kinds if re.fullmatch(r"Conv(Transpose)?[123]d", one)), None)
        kind = "LayerNorm(features)" if convolved is None else f"BatchNorm{convolved}(channels)"
        advice.append(f"normalize after each layer: `nn.{kind}`")
    advice.append(f"add residual connections, `x = x + layer(x)`, or use fewer layers than {profile.count}")
    keeping = "nn.init.kaiming_normal_" if rectified else "nn.init.orthogonal_"
    if any(gain_of(one) > 1.0 for one in layers(run)):
        advice.append(f"start with weights that keep the scale: `{keeping}(layer.weight)`")
    flat = sorted({one.kind for one in run.modules if one.kind in ("Tanh", "Sigmoid")})
    if flat and not rectified:
        advice.append(f"use rectified units in place of {' and '.join(flat)}: `nn.ReLU()`")
    return (*advice, *remedies.clip(evidence))
