"""Weights that start on a scale that explodes or saturates."""

from __future__ import annotations

import math
import re

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.inactive_units import units_never_active, weights_start_at_zero
from lightning_gradexplode.diagnose.causes.large_factors import large_factors, own_weights, steep_modules
from lightning_gradexplode.diagnose.curves import curve, first_nonfinite, loss_curve, signs
from lightning_gradexplode.diagnose.layers import (
    LARGE_GAIN,
    code_of_parameter,
    first_numbers,
    gain_of,
    has_initial_scale,
    is_early,
    is_rectified,
    is_trained,
    keeping_std,
    layers,
    normalized_share,
)
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Activation, Cause, Evidence, LossTerm, ParameterFacts, RunFacts

HUGE_WITH_SCALE = 100.0
"""First loss from which a scale that starts too large has made it so."""

FAR_FROM_GUESS = 6.0
"""Multiple of the logarithm of the number of classes from which a logarithm of a probability shows outputs that are too
large."""

_LOGARITHM = re.compile(r"(log|logit)_?(scale|temp|temperature|alpha|std|sigma|var|variance|precision)")

_SATURATING = ("tanh", "sigmoid", "hardtanh", "hardsigmoid")


def initialization(evidence: Evidence) -> Cause | None:
    """Return the cause if weights start on a scale that explodes or saturates, or are not finite from the start."""
    lost = _not_finite(evidence)
    if lost is not None:
        return lost
    if not is_early(evidence) or is_trained(evidence) or evidence.moves_weights:
        return None  # weights that the loop has perturbed before are not those of the start
    rules = (
        scale_without_logarithm,
        large_weights,
        large_factors,
        weights_start_at_zero,
        units_never_active,
        _saturated_units,
        steep_modules,
        own_weights,
    )
    return next((cause for rule in rules if (cause := rule(evidence)) is not None), None)


def _not_finite(evidence: Evidence) -> Cause | None:
    """Return the cause if parameters hold NaN or infinity before the first update."""
    run, failed, replay = evidence.run, first_nonfinite(evidence), evidence.replay
    if failed is None or failed.step != run.first_step or run.processes > 1:
        return None
    # A root mean square that is NaN may also be unknown; not where those of other parameters are known.
    names = [one.name for one in run.parameters if not math.isfinite(one.std) and 0 not in one.shape]
    if len(names) == len(run.parameters):
        names = []
    if replay is not None and replay.source == "parameter" and replay.source_name:
        names = list(dict.fromkeys([replay.source_name, *names]))
    if not names:
        return None
    known = {one.name: one for one in run.parameters}
    code = code_of_parameter(known[names[0]]) if names[0] in known else "layer.weight"
    others = f", and so do {len(names) - 1} others" if len(names) > 1 else ""
    loaded = "; if it was loaded, load another checkpoint" if run.is_resumed else ""
    return Cause(
        "initialization",
        names[0],
        (f"`{names[0]}` holds NaN or infinity before the first update{others}.",),
        0.95,
        (f"initialize it; `torch.empty` leaves what the memory held: `nn.init.normal_({code}, std=0.02)`{loaded}",),
    )


def large_weights(evidence: Evidence) -> Cause | None:
    """Return the cause if weights multiply their inputs by far more than the usual initializations do."""
    run = evidence.run
    large = sorted(
        (one for one in [*layers(run), *tied_embeddings(evidence)] if gain_of(one) > LARGE_GAIN),
        key=gain_of,
        reverse=True,
    )
    if not large:
        return None
    worst, gain = large[0], gain_of(large[0])
    confidence = 0.9 if gain >= 10 else 0.8 if gain >= 5 else 0.65
    if normalized_share(run) >= 0.5:
        confidence *= 0.6
    first = curve(evidence, "grad_norm").first
    if first is not None and first < (1 if trend(evidence).has_diverged else 10):
        confidence *= 0.5 if trend(evidence).has_diverged else 0.8  # what diverged did so later
    sentences = [
        f"`{worst.name}` starts with a root mean square of {worst.std:.3g}; {keeping_std(worst):.3g} would keep the "
        f"scale of its inputs, which it multiplies by {gain:.3g}."
    ]
    if len(large) > 1:
        sentences.append(f"{len(large)} weights multiply their inputs by more than {LARGE_GAIN:g}.")
    if "Embedding" in worst.module_kind:
        sentences.append("It is the output layer, too: there are as many classes as rows, and no other layer for them.")
    sentences += first_numbers(evidence)
    return Cause("initialization", worst.name, tuple(sentences), confidence, _remedies(evidence, worst))


def scale_without_logarithm(evidence: Evidence) -> Cause | None:
    """Return the cause if a number that is named as a logarithm starts where its exponential is huge."""
    few = [one for one in evidence.run.parameters if math.prod(one.shape) <= 64 and 10 <= one.largest < 80]
    named = [one for one in few if _LOGARITHM.search(one.name.lower())]
    worst = max(named, key=lambda one: one.largest, default=None)
    first = loss_curve(evidence).first
    if worst is None or first is None or not abs(first) > HUGE_WITH_SCALE:
        return None
    value = worst.largest
    return Cause(
        "initialization",
        worst.name,
        (
            f"`{worst.name}` starts at {value:.4g}, and its exponential is {math.exp(value):.3g}; the first loss is "
            f"{first:.4g}.",
        ),
        0.8,
        (
            f"start it at the logarithm of the scale: `{worst.name.rpartition('.')[2]} = "
            f"nn.Parameter(torch.tensor({value:.3g}).log())`",
            f"bound the scale: `{worst.name.rpartition('.')[2]}.clamp(max=4.6).exp()`",
        ),
    )


def tied_embeddings(evidence: Evidence) -> list[ParameterFacts]:
    """Return embeddings that the output layer shares: as many rows as classes, and no other layer has as many.

    None of which the first logarithms of probabilities are known, and not far from those of a guess.
    """
    replayed = evidence.replay.losses if evidence.replay is not None else ()
    ordinary = {_classes(term) for term in evidence.first_losses if not _is_far_from_guess(term)}
    classes = {_classes(term) for term in replayed} - ordinary - {0}
    outputs = {one.shape[0] for one in layers(evidence.run)}
    return [
        one
        for one in evidence.run.parameters
        if "Embedding" in one.module_kind and len(one.shape) == 2 and one.shape[0] in classes - outputs
    ]


def _classes(term: LossTerm) -> int:
    """Return the number of classes of a cross-entropy, 0 for another loss."""
    is_known = term.name.startswith("nll_loss") and term.inputs and len(term.inputs[0].shape) > 1
    return term.inputs[0].shape[1] if is_known else 0


def _is_far_from_guess(term: LossTerm) -> bool:
    """Return whether a class has a far lower probability than by a guess."""
    least, classes = term.inputs[0].least if term.inputs else None, _classes(term)
    return least is None or classes < 2 or -least > FAR_FROM_GUESS * math.log(classes)


def _saturated_units(evidence: Evidence) -> Cause | None:
    """Return the cause if nothing is learned and most units are in the flat part of their activation."""
    if not signs(evidence) & {"stalled-loss", "vanishing-gradient", "zero-gradient"} or evidence.replay is None:
        return None
    if trend(evidence).has_diverged or not has_initial_scale(evidence):
        return None  # units that a divergence has pushed there
    flat = [one for one in evidence.replay.activations if one.saturated is not None and one.saturated > 0.9]
    if not flat:
        return None
    worst = max(flat, key=lambda one: one.saturated or 0.0)
    return Cause(
        "initialization",
        worst.module,
        (
            f"{worst.saturated:.0%} of the outputs of `{worst.module}` ({worst.kind}) are in its flat part, where "
            "the slope is zero.",
        ),
        0.55,
        _flat_remedies(worst),
    )


def _flat_remedies(flat: Activation) -> tuple[str, ...]:
    smaller = "start with smaller weights in the layer before it: `nn.init.xavier_uniform_(layer.weight)`"
    if any(word in flat.kind.lower() for word in _SATURATING):
        return (smaller, "use rectified units in its place: `nn.ReLU()`")
    return (
        "start its biases at zero: `nn.init.zeros_(layer.bias)`",
        "let its flat part have a slope: `nn.LeakyReLU()`",
    )


def _remedies(evidence: Evidence, parameter: ParameterFacts) -> tuple[str, ...]:
    if "Embedding" in parameter.module_kind:
        std = remedies.rounded(min(0.02, keeping_std(parameter)), 1)
        return (
            f"start it smaller: `nn.init.normal_({code_of_parameter(parameter)}, std={std:g})`",
            *remedies.clip(evidence),
        )
    call = "nn.init.kaiming_normal_" if is_rectified(evidence.run) else "nn.init.xavier_uniform_"
    every = _as_large(evidence.run, parameter)
    others = f", and the {every} others that are as large" if every > 1 else ", and the other one" if every else ""
    return (f"start it on the usual scale: `{call}({code_of_parameter(parameter)})`{others}", *remedies.clip(evidence))


def _as_large(run: RunFacts, parameter: ParameterFacts) -> int:
    return sum(gain_of(one) > LARGE_GAIN and one.name != parameter.name for one in layers(run))
