"""Targets that are computed by the model itself, and change with its weights."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.descent import gradient_is_reversed, reversed_parameters, slope_ratio
from lightning_gradexplode.diagnose.causes.indication import Indication
from lightning_gradexplode.diagnose.causes.optimization import exceeds_usual
from lightning_gradexplode.diagnose.causes.outliers import outlier_field
from lightning_gradexplode.diagnose.causes.own_targets import (
    grown_target,
    infinite_target,
    moving_copy,
    target_of_itself,
    targets_stay,
)
from lightning_gradexplode.diagnose.curves import curve, failing_step, loss_curve
from lightning_gradexplode.diagnose.faults.operations import base_name
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.optimizers import is_plain_descent
from lightning_gradexplode.diagnose.trends import (
    SHORT_STEP,
    begins_abruptly,
    first_order_changes,
    initial_weight_norm,
    trend,
)
from lightning_gradexplode.records import Cause, Evidence, FieldFacts, RunFacts

GROWN = 1.5
"""Growth of the weights from which targets may have grown with them; with less, other data may have raised the loss."""

DATA_GROWN = 3.0
"""Deviation of a field, relative to the median of earlier batches, or growth of the inputs, from which data grow."""

HALF_WAY, WHOLE = 0.5, 0.9
"""Slope of the loss along its gradient, divided by the one that the gradient predicts, below which the gradient leaves
out the change of the targets, and from which it includes all that changes in the loss of the batch."""

LEVEL = 10
"""Number of losses whose median is a level."""

RUN_AWAY = 100.0
"""Multiple of their first level from which the losses of a critic and of an actor have run away."""

_TRANSITION = ("reward", "done", "next", "action", "terminal", "state", "obs", "log_prob", "advantage")


def moving_target(evidence: Evidence) -> Cause | None:
    """Return the cause if targets that are computed by the model itself grow with it."""
    loss = loss_curve(evidence).before(failing_step(evidence)).finite
    is_unknown = not len(loss_curve(evidence).finite)  # as in manual optimization
    has_grown = _grown(evidence) is not None or _error_of_values(evidence) is not None
    if not (trend(evidence).has_diverged or has_grown) or (len(loss) < 5 and not is_unknown):
        return None
    rules = (
        _error_of_values,
        _copy_makes_targets,
        _makes_targets_for_itself,
        _grown,
        _transitions,
        _along_the_update,
        _short_steps,
        _lost,
    )
    seen = [one for rule in rules if (one := rule(evidence)) is not None]
    confidence = sum(one.confidence for one in seen)
    are_computed = infinite_target(evidence) is not None or _grown(evidence) is not None
    if (outlier_field(evidence.batch) is not None or _has_growing_data(evidence)) and not are_computed:
        confidence *= 0.5  # such values explain the rise of the loss without moving targets
    if confidence < 0.4:
        return None
    copied = moving_copy(evidence)
    return Cause(
        "moving-target",
        copied[1] if copied is not None else None,
        tuple(one.sentence for one in seen),
        min(confidence, 0.85),
        (
            *_bound(evidence),
            (
                "make targets with a copy that follows slowly"
                if copied is None
                else f"compute the targets with the copy `{copied[1]}`, updated more slowly (a smaller tau, or rarely)"
            )
            + ": `target.lerp_(online, 0.005)` for each pair of weights, under `torch.no_grad()`",
            "bound the targets, and the loss by a linear one: `F.huber_loss(prediction, target)`",
            *remedies.clip(evidence),
        ),
    )


def _has_growing_data(evidence: Evidence) -> bool:
    """Return whether a field of the batch is on a larger scale than in most batches before, or inputs have grown."""
    fields = evidence.batch.fields if evidence.batch is not None else ()
    return (evidence.input_growth or 0.0) > DATA_GROWN or any(
        one.std and one.usual_std and one.std > DATA_GROWN * one.usual_std for one in fields
    )


def _error_of_values(evidence: Evidence) -> Indication | None:
    """Return the indication that a critic's error is as large as the values that an actor finds in it.

    The loss of the actor is the negative mean of the critic's values, and that of the critic the mean of the squares of
    their errors (Lillicrap et al., 2016, algorithm 1). If the values run away, both grow, and the second is about the
    square of the first.
    """
    if max(len(evidence.history), len(evidence.first)) != 2:
        return None
    losses = [curve(evidence, "loss", optimizer=place).finite.value for place in (0, 1)]
    if min(map(len, losses)) < 2 * LEVEL:
        return None
    for errors, negative in (losses, losses[::-1]):
        error, value = float(np.median(errors[-LEVEL:])), -float(np.median(negative[-LEVEL:]))
        early_error, early_value = (float(np.median(np.abs(one[:LEVEL]))) for one in (errors, negative))
        has_run_away = value > RUN_AWAY * early_value and error > RUN_AWAY * early_error
        if errors.min() >= 0 and value > 0 and has_run_away and 0.01 < error / value**2 < 100:
            return Indication(
                0.4 if exceeds_usual(evidence) else 0.65,
                f"The loss of one optimizer has fallen to {-value:.3g}, and that of the other has risen to "
                f"{error:.3g}, about its square: a critic's error is as large as the values that an actor finds in it, "
                "and these values are part of their own targets.",
            )
    return None


def _copy_makes_targets(evidence: Evidence) -> Indication | None:
    copied = moving_copy(evidence)
    if copied is None:
        return None
    if not _start_alike(evidence.run, *copied):
        return Indication(0.2, f"`{copied[1]}` has the shapes of `{copied[0]}`, but began with other weights.")
    # A copy as the only evidence is no stronger than a learning rate with which most networks fail.
    confidence = 0.3 if exceeds_usual(evidence) else 0.4
    sentence = f"`{copied[1]}` has the shapes of `{copied[0]}`, as the copy of a network for targets has."
    return Indication(confidence, sentence)


def _start_alike(run: RunFacts, name: str, other: str) -> bool:
    """Return whether two modules of the same shapes may have started with the same weights.

    A copy that follows a network does, while a fixed teacher has other weights. In a resumed run this is not known.
    """
    first, second = ([one.std for one in run.parameters if one.name.split(".")[0] == part] for part in (name, other))
    known = [pair for pair in zip(first, second, strict=False) if all(math.isfinite(one) for one in pair)]
    return run.is_resumed or all(math.isclose(*pair, rel_tol=1e-4, abs_tol=1e-9) for pair in known)


def _makes_targets_for_itself(evidence: Evidence) -> Indication | None:
    itself = target_of_itself(evidence) if moving_copy(evidence) is None else None
    if itself is None:
        return None
    return Indication(
        0.4,
        f"The targets of `{itself[1].name}` are no field of the batch, and `{itself[0].module}` is executed "
        f"{itself[0].calls} times in one forward pass, of which one has an error gradient: in the others the network "
        "computes its own targets.",
    )


def _transitions(evidence: Evidence) -> Indication | None:
    fields = [one.name.lower() for one in evidence.batch.fields] if evidence.batch is not None else []
    transitions = {word for word in _TRANSITION if any(word in name for name in fields)}
    if len(transitions) < 2:
        return None
    return Indication(
        0.55 if {"reward", "next"} <= transitions else 0.25,
        f"A batch holds transitions of reinforcement learning ({', '.join(fields[:6])}): the values that are "
        "learned are part of their own targets.",
    )


def _along_the_update(evidence: Evidence) -> Indication | None:
    """Return the evidence of the loss of the same batch along the update, if it was computed."""
    search = line_search(evidence)
    if search is None:
        return None
    if not search.overshoots:
        effect = "lowers" if search.end < search.start else "hardly changes"
        return Indication(
            0.3,
            f"Each update {effect} the loss of its own batch (from {search.start:.4g} to {search.end:.4g}), and yet "
            f"the loss has risen {_rise(evidence)}: the targets move.",
        )
    ratio = slope_ratio(evidence)
    if gradient_is_reversed(evidence) or reversed_parameters(evidence) or (ratio is not None and ratio >= WHOLE):
        return None
    if search.climbs:
        return Indication(
            0.55 if is_plain_descent(evidence.run) else 0.35,
            f"The loss of the same batch rises from the start of the update on (from {search.start:.4g}, by "
            f"{search.slope:.3g} for the whole update to first order), where a step along its gradient lowers it: "
            "the targets move with the weights.",
        )
    if ratio is not None and ratio < HALF_WAY:
        return Indication(
            0.45,
            f"The slope of the loss of the same batch along its gradient is {ratio:.2g} times the one that the "
            "gradient predicts: its targets move with the weights, and the gradient does not include that.",
        )
    if not search.falls_at_first:
        return Indication(
            0.2,
            "Even a hundredth of the update does not lower the loss of the same batch: the targets move with it.",
        )
    return None


def _short_steps(evidence: Evidence) -> Indication | None:
    """Return the evidence that no update was long enough to overshoot, if the loss along the update is not known."""
    changes = first_order_changes(evidence) if line_search(evidence) is None else None
    greatest = None if changes is None else changes[1]
    weights, start = curve(evidence, "weight_norm").greatest, initial_weight_norm(evidence)
    if greatest is None or greatest >= SHORT_STEP or weights is None or not start or weights <= GROWN * start:
        return None
    if not trend(evidence).has_diverged or targets_stay(evidence) is not None:
        return None  # what has run away is another loss, or the outputs alone
    return Indication(
        0.45,
        f"The loss rose {_rise(evidence)}, and no update can have changed that of its own batch by more than "
        f"{greatest:.2g} of it: the steps do not overshoot, the targets move with the weights, which have grown to "
        f"{weights / start:.3g} times their norm.",
    )


def _lost(evidence: Evidence) -> Indication | None:
    infinite = infinite_target(evidence)
    if infinite is None:
        return None
    least, greatest = _usual_range(infinite)
    return Indication(
        0.75,
        f"`{infinite.name}` is infinite in {infinite.inf_count} elements where the outputs are infinite, too, and "
        f"was between {least:g} and {greatest:g} before: it is computed from the outputs.",
    )


def _grown(evidence: Evidence) -> Indication | None:
    found = grown_target(evidence) if infinite_target(evidence) is None and not begins_abruptly(evidence) else None
    if found is None:
        return None
    return Indication(
        0.3 if exceeds_usual(evidence) else 0.6,  # updates that are far too long make outputs and targets grow, too
        f"The targets of `{base_name(found[0].name)}` have grown {found[1]:.3g} times since the first step, and its "
        "outputs with them: they are computed from the model.",
    )


def _bound(evidence: Evidence) -> list[str]:
    infinite = infinite_target(evidence)
    if infinite is None:
        return []
    least, greatest = _usual_range(infinite)
    return [f"keep targets within the range of the data: `target = target.clamp({least:g}, {greatest:g})`"]


def _usual_range(field: FieldFacts) -> tuple[float, float]:
    return remedies.rounded(field.usual_least or 0.0, 2), remedies.rounded(field.usual_greatest or 0.0, 2)


def _rise(evidence: Evidence) -> str:
    loss = loss_curve(evidence).before(failing_step(evidence))
    return f"from {loss.first or 0:.4g} to {loss.last or 0:.4g}"
