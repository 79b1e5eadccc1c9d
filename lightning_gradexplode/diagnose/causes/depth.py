"""A gain per layer that compounds over depth."""

from __future__ import annotations

import re

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.gain_profiles import Profile, steepest_profile
from lightning_gradexplode.diagnose.layers import (
    first_numbers,
    gain_of,
    is_early,
    is_rectified,
    is_trained,
    layers,
    normalized_share,
)
from lightning_gradexplode.records import Cause, Evidence


def depth(evidence: Evidence) -> Cause | None:
    """Return the cause if the gain per layer compounds over a deep network."""
    best = steepest_profile(evidence)
    if best is None or is_trained(evidence):
        return None
    confidence = 0.75 if best.total >= 1e3 else 0.6
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
