"""The causes that have evidence, ranked, as one diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.calm import calm_causes
from lightning_gradexplode.diagnose.causes import RULES
from lightning_gradexplode.diagnose.causes.descent import multiplied_gradients
from lightning_gradexplode.diagnose.causes.objective import negative_term
from lightning_gradexplode.diagnose.causes.optimization import replacing_update
from lightning_gradexplode.diagnose.curves import critical_step, first_nonfinite, is_critical, signs
from lightning_gradexplode.diagnose.guarded_rules import causes_by
from lightning_gradexplode.diagnose.learning import has_learned, has_recovered
from lightning_gradexplode.diagnose.outside_changes import is_new_level, outside_change
from lightning_gradexplode.diagnose.summary import observations, what_happened
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import CAUSE_KINDS, Cause, Diagnosis, Evidence, Severity
from lightning_gradexplode.records.diagnosis import MIN_CONFIDENCE

CERTAIN = 0.7
"""Confidence of a cause from which those that it explains are alternatives of low confidence."""

SURE = 0.95
"""Confidence of a cause from which there is no alternative to it."""

WEAK = 0.2
"""Least confidence of an alternative to a certain cause, or to an unknown one, that is reported."""

HARMLESS = 0.4
"""Factor of the confidence of causes of failure, in a run with warnings that has learned or recovered nevertheless."""

MAX_CAUSES = 3
MAX_REMEDIES = 5

_FAULTS = ("undefined-operation", "forward-overflow", "half-precision", "outlier-batch")
_GROWTH = ("learning-rate", "learning-rate-jump", "optimizer-state", "moving-target", "depth", "initialization",
           "recurrence", "unscaled-data", "loss-without-floor")  # fmt: skip

_SCALES = ("unscaled-data", "initialization", "depth")
"""What makes gradients large or small."""

_BY_LARGE_STEPS = (*_GROWTH, "accumulated-gradients", "forward-overflow")
"""What steps along gradients that something multiplies also look like; the first loss was finite."""

EXPLAINS: Mapping[str, Sequence[str]] = {
    # Values of the batch explain every operation on them, without any growth.
    "nonfinite-input": (*_FAULTS, *_GROWTH, "empty-reduction", "nonfinite-target"),
    "nonfinite-target": (*_FAULTS, *_GROWTH, "empty-reduction"),
    "empty-reduction": (*_FAULTS, *_GROWTH, "target-out-of-range"),
    # Targets outside the domain of the loss explain that it has no lower bound, and that its updates grow.
    "target-out-of-range": (
        "learning-rate",
        "loss-without-floor",
        "optimizer-state",
        "moving-target",
        "depth",
        "initialization",
        "recurrence",
    ),
    "undefined-operation": ("learning-rate", "outlier-batch", "depth", "initialization", "optimizer-state"),
    "forward-overflow": ("outlier-batch", "depth", "initialization", "moving-target"),
    "half-precision": ("forward-overflow", "learning-rate", "optimizer-state", "depth", "initialization"),
    # Each of these makes updates overshoot, so that an overshoot is no further evidence for the rate.
    "unscaled-data": ("learning-rate", "initialization", "depth", "outlier-batch"),
    "initialization": ("learning-rate", "depth"),
    "depth": ("learning-rate",),
    "recurrence": ("learning-rate", "depth"),
    "loss-without-floor": ("learning-rate", "moving-target", "depth", "initialization", "outlier-batch"),
    "accumulated-gradients": ("learning-rate", "optimizer-state", "moving-target", "depth"),
    "learning-rate-jump": ("learning-rate", "moving-target", "depth", "outlier-batch"),
    "optimizer-state": ("learning-rate", "moving-target"),
    "moving-target": ("learning-rate",),
    "outlier-batch": ("learning-rate",),
}
"""For each kind, the kinds whose evidence it explains: their confidence is halved, or lower if it is certain."""


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return what happened in an incident and why, the most likely cause first.

    A cause is reported from a confidence of 0.35 on. The confidence of a cause that another one explains (`EXPLAINS`)
    is halved; if the other one has a confidence of at least 0.7, it is an alternative of low confidence, and from 0.95
    on it is dropped. In a run that has learned nevertheless, causes of failure are less likely. Without any cause left,
    the causes of a run that has not failed are looked for (`calm_causes`) if it has not, else the cause is
    ``"unknown"``, with the measurements. A rule that raises is logged and left out.

    Args:
        evidence: The evidence; each part may be missing.
    """
    found = [cause for kind, rule in RULES.items() for cause in causes_by(kind, rule, evidence)]
    if outside_change(evidence) is not None:
        found = [one for one in found if one.kind not in (*_GROWTH, "outlier-batch")]
    elif multiplied_gradients(evidence) is not None:
        found = [one for one in found if one.kind not in _BY_LARGE_STEPS]
    elif is_new_level(evidence):
        found = [one for one in found if one.kind != "outlier-batch"]
    is_learned = not is_critical(evidence) and has_learned(evidence)
    is_harmless = is_learned or (not is_critical(evidence) and has_recovered(evidence))
    if is_harmless:
        # The run has not failed, so that causes of failure are less likely, even with a warning at its start.
        found = [
            replace(one, confidence=round(HARMLESS * one.confidence, 2)) if _needs_failure(one) else one
            for one in found
        ]
    causes = rank(found, _explains(evidence))
    if not causes and not is_critical(evidence) and first_nonfinite(evidence) is None:
        # A run that is back at the level of before may never have learned.
        causes = tuple(negative_term(evidence) if is_learned else calm_causes(evidence))
    if not causes or causes[0].confidence < MIN_CONFIDENCE:
        weak = sorted(
            (replace(one, confidence=round(one.confidence, 2)) for one in found if one.confidence >= WEAK),
            key=lambda one: -one.confidence,
        )
        causes = (_unknown(evidence), *weak)[:MAX_CAUSES]
    first = causes[0]
    return Diagnosis(
        step=evidence.step,
        what=what_happened(evidence),
        where=first.where if first.kind != "unknown" else _place(evidence),
        since=_since(evidence),
        causes=causes,
        remedies=_remedies(causes),
    )


def _needs_failure(cause: Cause) -> bool:
    """Return whether the course of the run is the only evidence of a cause."""
    return cause.kind in _GROWTH or (cause.kind == "outlier-batch" and cause.where is None)


def _explains(evidence: Evidence) -> Mapping[str, Sequence[str]]:
    """Return what each kind explains, except for an update that replaces the weights, whatever their scale is."""
    if replacing_update(evidence) is None:
        return EXPLAINS
    return {
        kind: [one for one in kinds if one != "learning-rate" or kind not in _SCALES]
        for kind, kinds in EXPLAINS.items()
    }


def rank(causes: Sequence[Cause], explains: Mapping[str, Sequence[str]] = EXPLAINS) -> tuple[Cause, ...]:
    """Return the causes to report, most likely first, without those that a more likely one explains.

    Args:
        causes: The causes.
        explains: The kinds that each kind explains.
    """
    known = {cause.kind: cause for cause in causes}
    kept = []
    for cause in causes:
        # The rate is the cause once the others are excluded; other causes are explained by more likely ones only.
        least = MIN_CONFIDENCE if cause.kind == "learning-rate" else max(MIN_CONFIDENCE, 0.75 * cause.confidence)
        explaining = [
            other.confidence
            for kind, other in known.items()
            if cause.kind in explains.get(kind, ()) and other.confidence >= least
        ]
        confidence, needed = cause.confidence * (0.5 if explaining else 1.0), MIN_CONFIDENCE
        if explaining and max(explaining) >= CERTAIN:
            confidence, needed = 0.4 * cause.confidence, WEAK if max(explaining) < SURE else 1.0
        if confidence >= needed:
            kept.append(replace(cause, confidence=round(confidence, 2)))
    kept.sort(key=lambda one: (-one.confidence, CAUSE_KINDS.index(one.kind)))
    return tuple(kept[:MAX_CAUSES])


def _unknown(evidence: Evidence) -> Cause:
    change, multiplied = outside_change(evidence), multiplied_gradients(evidence)
    if change is not None and change.last is not None:
        advice = [  # restored weights would grow in the same way
            "look for what changes the weights between the optimizer's steps; a decay in the loop multiplies them by a "
            "number below one: `parameter.mul_(1 - lr * weight_decay)`"
        ]
    elif change is not None:
        advice = remedies.rollback(evidence)
    elif multiplied is not None:
        advice = [multiplied.remedy]
    elif first_nonfinite(evidence) is None:
        may_help = trend(evidence).has_diverged and "zero-gradient" not in signs(evidence)  # zeros are not clipped
        clip = remedies.clip(evidence) if may_help else []
        advice = [*remedies.own_functions(evidence), *clip]
    else:
        one_batch = remedies.clip(evidence) if trend(evidence).has_diverged else remedies.skip(evidence)
        advice = [*remedies.anomaly_mode(evidence), *one_batch, *remedies.step_again(evidence)]
    return Cause("unknown", None, observations(evidence), 0.0, tuple(advice))


def _place(evidence: Evidence) -> str | None:
    """Return the parameter that the first serious finding names, None after a non-finite loss, which affects all."""
    found = first_nonfinite(evidence)
    if found is not None:
        return None if found.sign == "nonfinite-loss" else found.where
    serious = [one for one in evidence.findings if one.severity is Severity.CRITICAL] or list(evidence.findings)
    return next((one.where for one in serious if one.where), None)


def _since(evidence: Evidence) -> int | None:
    """Return the first step with a finding; warnings before a sudden failure are not part of the incident."""
    step = critical_step(evidence)
    if not trend(evidence).has_diverged:
        return None
    steps = [one.step for one in evidence.findings if one.severity >= Severity.WARNING and one.step < step]
    return min(steps, default=None)


def _remedies(causes: Sequence[Cause]) -> tuple[str, ...]:
    """Return the remedies of all causes: those of the first, then the first of each likely other one."""
    others = (one for one in causes[1:] if one.remedies and one.confidence >= MIN_CONFIDENCE)
    listed = [*causes[0].remedies, *(one.remedies[0] for one in others)]
    return tuple(dict.fromkeys(listed))[:MAX_REMEDIES]
