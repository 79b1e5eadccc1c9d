"""Other starts on a scale that explodes: of factors and embeddings, and of modules that each multiply the gradient."""

from __future__ import annotations

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import is_float, scale_of
from lightning_gradexplode.diagnose.curves import curve, first_nonfinite, loss_curve
from lightning_gradexplode.diagnose.gain_profiles import backward_gain
from lightning_gradexplode.diagnose.layers import DEEP, code_of_parameter, first_numbers, layers
from lightning_gradexplode.diagnose.trends import starts_huge
from lightning_gradexplode.records import Cause, Evidence, ParameterFacts

LARGE_EMBEDDING, LARGE_FACTOR = 5.0, 100.0
"""Root mean squares from which embeddings and factors of the user's own are large; usual ones are 1 and below."""

USUAL_SCALE = 10.0
"""Root mean square up to which the numbers of a batch make no loss explode by themselves."""

STEEP = 5.0
"""Gain of the error gradient per module from which even a few modules make it explode."""


def large_factors(evidence: Evidence) -> Cause | None:
    """Return the cause if factors or embeddings start far above one, and the first loss or gradient is large, too."""
    first, norm = loss_curve(evidence).first, curve(evidence, "grad_norm").first
    is_lost_at_once = first is None and first_nonfinite(evidence) is not None
    if not is_lost_at_once and (first is None or norm is None or not (abs(first) >= 10 or norm >= 100)):
        return None
    weights = {one.name for one in layers(evidence.run)}
    roles = {one.name: one.role for one in evidence.run.modules}
    own = [one for one in evidence.run.parameters if one.name not in weights and not one.name.endswith("bias")]
    large = [one for one in own if _excess(one, roles.get(one.module, "other")) >= 1]
    if not large:
        return None
    worst = max(large, key=lambda one: _excess(one, roles.get(one.module, "other")))
    others = f", and {len(large) - 1} more on such a scale" if len(large) > 1 else ""
    is_matrix = len(worst.shape) > 1  # equal elements of a matrix would stay equal
    start = f"nn.init.{'normal_' if is_matrix else 'constant_'}({code_of_parameter(worst)}, "
    return Cause(
        "initialization",
        worst.name,
        (
            f"`{worst.name}` starts with a root mean square of {worst.std:.3g}{others}; usual is one and below.",
            *first_numbers(evidence),
        ),
        0.85,
        (
            f"start it on the usual scale: `{start}{'std=0.02' if is_matrix else '0.1'})`",
            *remedies.clip(evidence),
        ),
    )


def _excess(parameter: ParameterFacts, role: str) -> float:
    """Return the root mean square of an embedding or of a factor over that from which it is large, 0 for others."""
    if "Embedding" in parameter.module_kind:
        return parameter.std / LARGE_EMBEDDING
    return parameter.std / LARGE_FACTOR if role == "other" else 0.0


def steep_modules(evidence: Evidence) -> Cause | None:
    """Return the cause if each of a few modules multiplies the error gradient before any update."""
    gain = backward_gain(evidence)
    if gain is None or not 2 < gain.count < DEEP or not gain.per_layer >= STEEP:
        return None
    return Cause(
        "initialization",
        gain.where,
        (
            f"Over {gain.count} modules {gain.words} {gain.total:.3g} times, {gain.per_layer:.3g} times a module, "
            "before any update.",
            *first_numbers(evidence),
        ),
        0.4,
        (
            "start with smaller weights in the layers whose output is multiplied: "
            "`nn.init.xavier_uniform_(layer.weight, gain=1 / factor)`",
            *remedies.clip(evidence),
        ),
    )


def own_weights(evidence: Evidence) -> Cause | None:
    """Return the cause if loss and gradient start huge on usual data, and weights of the user's own make the outputs.

    What the layers of torch do with their weights is known; how a formula of the user's own multiplies its weights is
    not, so that they are what is left.
    """
    run, batch = evidence.run, evidence.batch
    roles = {one.name: one.role for one in run.modules}
    own = [one for one in run.parameters if len(one.shape) > 2 and roles.get(one.module, "other") == "other"]
    scales = [scale_of(one) for one in (batch.fields if batch is not None else ()) if is_float(one)]
    is_usual = bool(scales) and all(one is not None and one <= USUAL_SCALE for one in scales)
    if not own or not is_usual or not starts_huge(evidence):
        return None
    worst = max(own, key=lambda one: one.std)
    others = f", and {len(own) - 1} more such weights" if len(own) > 1 else ""
    std = remedies.rounded(0.1 * worst.std, 1)
    return Cause(
        "initialization",
        worst.name,
        (
            *first_numbers(evidence),
            f"The numbers of the batch have a scale of {max(one or 0.0 for one in scales):.3g} at most, so that it is "
            f"the formula by which `{worst.name}`{others} make the outputs; it starts with a root mean square of "
            f"{worst.std:.3g}.",
        ),
        0.4,
        (
            f"start it, and others of its kind, far smaller: `nn.init.normal_({code_of_parameter(worst)}, "
            f"std={std:g})`",
            *remedies.clip(evidence),
        ),
    )
