"""Inputs and targets on a scale far from that which initializations assume."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.batch import (
    inputs,
    is_float,
    is_from_graph,
    is_index,
    place_of,
    scale_of,
    size_of,
    targets,
)
from lightning_gradexplode.diagnose.causes.inactive_units import MIN_GROWTH, last_gradients
from lightning_gradexplode.diagnose.curves import critical_step, curve, loss_curve, signs
from lightning_gradexplode.diagnose.layers import EARLY_STEPS, LARGE_GAIN, first_numbers, gain_of, layers
from lightning_gradexplode.diagnose.trends import starts_huge, trend
from lightning_gradexplode.records import AppliedWeight, BatchFacts, Cause, Evidence, FieldFacts

LARGE_SCALE = ((1000.0, 0.9), (100.0, 0.7), (30.0, 0.6), (10.0, 0.45))
"""Root mean squares of a field, and the confidence that a field of at least that scale is at fault."""

_OF_SCALE = {"clip-saturated", "gradient-above-one", "vanishing-gradient"}
"""Signs of a run that has not failed, in which data on a large scale show."""

USUAL_SCALE, HUGE_BY_TARGETS = 10.0, 1e4
"""Root mean square of what a layer takes up to which its outputs are on the usual scale, and loss per element from
which it is then the targets that are not."""

LARGE_WHOLE = 1e5
"""Size from which integers count as quantities such as times, unless an embedding has as many rows."""


def unscaled_data(evidence: Evidence) -> Cause | None:
    """Return the cause if inputs or targets are on a large scale and the run fails from its start."""
    batch = evidence.batch
    if batch is None or not _fails_early(evidence):
        return None
    found = sorted(_large_fields(batch, evidence), key=lambda one: one[0], reverse=True)
    if not found:
        return _computed_features(evidence) or _targets_by_elimination(evidence)
    first_norm = curve(evidence, "grad_norm").first
    scale, _field = found[0]
    confidence = next(value for border, value in LARGE_SCALE if scale >= border)
    sentences = [_scale_sentence(one, field) for one, field in found[:2]]
    if first_norm is not None:
        sentences.append(f"The first gradient, before any update, has the norm {first_norm:.3g}.")
        confidence *= 1.0 if first_norm >= 10 else 0.6
    first_loss = loss_curve(evidence).first
    if first_loss is not None:
        sentences.append(f"The first loss is {first_loss:.4g}.")
    if all(field in inputs(evidence) for _, field in found) and _layers_take_usual_numbers(evidence):
        confidence *= 0.5
        sentences.append(f"No layer takes it as it is: what each multiplies has at most {USUAL_SCALE:g} at first.")
    return Cause(
        "unscaled-data",
        " and ".join(place_of(field) for _, field in found[:2]),
        tuple(sentences),
        confidence,
        (
            *_standardize([field for _, field in found[:2]]),
            *(
                ["normalize inside of the model: `nn.BatchNorm1d(features)` as its first layer"]
                if any(field in inputs(evidence) for _, field in found[:2])
                else []
            ),
        ),
    )


def _computed_features(evidence: Evidence) -> Cause | None:
    """Return the cause if what a layer takes is on a large scale, though the batch and earlier layers are not."""
    first, norm = _first_large_input(evidence), curve(evidence, "grad_norm").first
    if first is None or norm is None or norm < 10:
        return None
    fields = evidence.batch.fields if evidence.batch is not None else ()
    if any(is_float(one) and (size_of(one) or 0.0) >= (first.first_rms or 0.0) for one in fields):
        return None  # a few elements of the batch are as large, see `_usual_scale`
    layer = first.name.rpartition(".")[0] or first.name
    if first is evidence.applied[0]:
        sentence = (
            f"`{first.name}` is the first weight of the forward pass, and what it multiplies has a root mean square of "
            f"{first.first_rms:.3g}; no field of the batch is as large, so that it is computed from them."
        )
    else:
        sentence = (
            f"What `{first.name}` multiplies has a root mean square of {first.first_rms:.3g} at the first step. What "
            f"the weights before it multiply has at most {USUAL_SCALE:g}, and they keep its scale, so that what is "
            f"computed right before `{layer}` is on a large scale."
        )
    return Cause(
        "unscaled-data",
        f"the input of `{layer}`",
        (sentence, *first_numbers(evidence)),
        0.7,
        (
            f"bring what `{layer}` takes to a scale near one: compute it from smaller numbers, or normalize it: "
            "`F.layer_norm(x, x.shape[-1:])`",
        ),
    )


def _first_large_input(evidence: Evidence) -> AppliedWeight | None:
    """Return the first weight that multiplies something on a large scale, if no weight before it has made it so."""
    weights = {one.name: one for one in layers(evidence.run)}
    for one in evidence.applied:
        size, weight = one.first_rms or 0.0, weights.get(one.name)
        if size >= LARGE_SCALE[0][0]:
            return one
        if one.first_rms is None or weight is None or one.calls > 1 or size > USUAL_SCALE:
            return None
        if gain_of(weight) > LARGE_GAIN:
            return None
    return None


def _layers_take_usual_numbers(evidence: Evidence) -> bool:
    """Return whether it is known of each layer that what it takes is on the usual scale."""
    sizes = [one.first_rms for one in evidence.applied]
    is_usual = bool(sizes) and all(one is not None and one <= USUAL_SCALE for one in sizes)
    return is_usual and len(sizes) == len(layers(evidence.run))


def _targets_by_elimination(evidence: Evidence) -> Cause | None:
    """Return the cause if the first loss is huge, and no outputs on the usual scale can make it so.

    Where the targets are not known, as those of a formula of the user's own in a plain loop, they are what is left:
    the loss is the difference of them and the result of a layer, what each weight is multiplied with is on the usual
    scale, the weights are, and no number multiplies the loss.
    """
    run, first, norm = evidence.run, loss_curve(evidence).first, curve(evidence, "grad_norm").first
    weights, is_usual = layers(run), _layers_take_usual_numbers(evidence)
    if not evidence.compares_layer or not is_usual or any(gain_of(one) > LARGE_GAIN for one in weights):
        return None
    is_multiplied = evidence.loss_divisors is None or any(abs(one) < 0.1 for one in evidence.loss_divisors)
    if targets(evidence) or is_multiplied or run.is_resumed:
        return None
    elements = max((math.prod(one.shape) for one in inputs(evidence)), default=0)
    outputs = evidence.batch.size if evidence.batch is not None and evidence.batch.size else 1
    largest = max(elements, outputs * weights[-1].shape[0])  # the loss may be a sum over as many elements
    if first is None or norm is None or not (starts_huge(evidence) and first > HUGE_BY_TARGETS * largest):
        return None
    return Cause(
        "unscaled-data",
        "the targets of the loss",
        (
            f"The first loss is {first:.4g} and the first gradient has the norm {norm:.3g}, before any update.",
            "What each layer takes and the weights of each layer are on the usual scale, so that the outputs are as "
            "well: it is the targets that are on a large scale.",
        ),
        0.9,
        ("standardize the targets by the training set: `target = (target - mean) / (std + 1e-6)`",),
    )


def _standardize(fields: Sequence[FieldFacts]) -> list[str]:
    """Return the advice to standardize fields, which are known from the batch or from the graph of the loss."""
    places = [place_of(field) for field in fields]
    if not any(map(is_from_graph, fields)):
        return [remedies.standardize(place) for place in places]
    mean = "the mean of each" if len(fields) > 1 else "its mean"
    named = " and the ".join(places)
    return [f"standardize the {named} by the training set: subtract {mean}, and divide by its deviation"]


def _fails_early(evidence: Evidence) -> bool:
    """Return whether the run fails at its start, or its loss was seldom much below the first one.

    If clipping reduces the gradients at nearly every step, or nothing but their size was found, they have been too
    large from the start. So have they if they have been exactly zero since the first steps, in which the weights grew:
    large updates have made units inactive.
    """
    step = critical_step(evidence)
    if step - evidence.run.first_step <= EARLY_STEPS or signs(evidence) <= _OF_SCALE:
        return True
    if "zero-gradient" in signs(evidence) and len(evidence.history) == 1:
        lost = min(last_gradients(evidence).values(), default=step)
        if lost - evidence.run.first_step <= EARLY_STEPS and trend(evidence).weight_growth >= MIN_GROWTH:
            return True
    before = loss_curve(evidence).before(step).finite
    return before.first is not None and (before.median or 0.0) > 0.5 * before.first > 0


def _large_fields(batch: BatchFacts, evidence: Evidence) -> list[tuple[float, FieldFacts]]:
    """Return inputs and real-valued targets on a large scale, with it; not inputs that the first module normalizes."""
    modules = evidence.run.modules
    normalized = bool(modules) and evidence.run.order_is_executed and modules[0].role == "normalization"
    pixels = [one for one in batch.fields if one.dtype == "uint8" and len(one.shape) > 2]
    wholes = [one for one in batch.fields if _is_large_whole(one, evidence)]
    labels = [one for one in targets(evidence) if not one.is_integral or (size_of(one) or 0) > 1000]
    fields = [*([] if normalized else [*inputs(evidence), *pixels, *wholes]), *labels]
    scales = [(_usual_scale(field), field) for field in fields]
    return [(scale, field) for scale, field in scales if scale >= LARGE_SCALE[-1][0]]


def _is_large_whole(field: FieldFacts, evidence: Evidence) -> bool:
    """Return whether a field holds integers too large for indices into an embedding of this network."""
    if is_float(field) or is_index(field) or field in targets(evidence):
        return False
    rows = max((one.shape[0] for one in evidence.run.parameters if len(one.shape) == 2), default=0)
    return (size_of(field) or 0.0) >= max(LARGE_WHOLE, rows)


def _usual_scale(field: FieldFacts) -> float:
    """Return the scale of a field in most rows and batches: an outlier of this batch, or in it, does not count."""
    scale = scale_of(field) or 0.0
    if field.row_size is not None:
        scale = min(scale, field.row_size)
    usual = [abs(one) for one in (field.usual_least, field.usual_greatest) if one is not None]
    return min(scale, max(usual)) if usual else scale


def _scale_sentence(scale: float, field: FieldFacts) -> str:
    return (
        f"`{place_of(field)}` ranges from {field.least or 0:.4g} to {field.greatest or 0:.4g}, with a root mean "
        f"square of {scale:.4g}; layers are initialized for inputs and targets near 1."
    )
