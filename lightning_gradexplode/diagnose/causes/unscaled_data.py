"""Inputs and targets on a scale far from that which initializations assume."""

from __future__ import annotations

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
from lightning_gradexplode.diagnose.curves import critical_step, curve, loss_curve, signs
from lightning_gradexplode.records import BatchFacts, Cause, Evidence, FieldFacts

LARGE_SCALE = ((1000.0, 0.9), (100.0, 0.7), (30.0, 0.6), (10.0, 0.45))
"""Root mean squares of a field, and the confidence that a field of at least that scale is at fault."""

_OF_SCALE = {"clip-saturated", "gradient-above-one", "vanishing-gradient"}
"""Signs of a run that has not failed, in which data on a large scale show."""

LARGE_WHOLE = 1e5
"""Size from which integers count as quantities such as times, unless an embedding has as many rows."""


def unscaled_data(evidence: Evidence) -> Cause | None:
    """Return the cause if inputs or targets are on a large scale and the run fails from its start."""
    batch = evidence.batch
    if batch is None or not _fails_early(evidence):
        return None
    found = sorted(_large_fields(batch, evidence), key=lambda one: one[0], reverse=True)
    if not found:
        return None
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
    return Cause(
        "unscaled-data",
        " and ".join(place_of(field) for _, field in found[:2]),
        tuple(sentences),
        confidence,
        (
            *(_standardize(field) for _, field in found[:2]),
            *(
                ["normalize inside of the model: `nn.BatchNorm1d(features)` as its first layer"]
                if any(field in inputs(evidence) for _, field in found[:2])
                else []
            ),
        ),
    )


def _standardize(field: FieldFacts) -> str:
    place = place_of(field)
    if is_from_graph(field):
        return f"standardize the {place} by the training set: subtract its mean, and divide by its deviation"
    return remedies.standardize(place)


def _fails_early(evidence: Evidence) -> bool:
    """Return whether the run fails at its start, or its loss was never much below the first one.

    If clipping reduces the gradients at nearly every step, or nothing but their size was found, they have been too
    large from the start.
    """
    step = critical_step(evidence)
    if step - evidence.run.first_step <= 30 or signs(evidence) <= _OF_SCALE:
        return True
    before = loss_curve(evidence).before(step).finite
    return before.first is not None and before.least is not None and before.least > 0.5 * before.first > 0


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
    if field.outlier_rows and field.row_size is not None:
        scale = min(scale, field.row_size)
    usual = [abs(one) for one in (field.usual_least, field.usual_greatest) if one is not None]
    return min(scale, max(usual)) if usual else scale


def _scale_sentence(scale: float, field: FieldFacts) -> str:
    return (
        f"`{place_of(field)}` ranges from {field.least or 0:.4g} to {field.greatest or 0:.4g}, with a root mean "
        f"square of {scale:.4g}; layers are initialized for inputs and targets near 1."
    )
