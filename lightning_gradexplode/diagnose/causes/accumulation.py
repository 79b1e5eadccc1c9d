"""Gradients that are not cleared between steps, or summed where they should be averaged."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.diagnose.causes.optimization import exceeds_usual
from lightning_gradexplode.diagnose.curves import curve, loss_curve
from lightning_gradexplode.diagnose.layers import layers
from lightning_gradexplode.diagnose.line_search import line_search
from lightning_gradexplode.diagnose.optimizers import uses_adaptive_optimizer
from lightning_gradexplode.diagnose.remedies.loop_code import code_of
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence, LossTerm

UNCLEARED = 3.0
"""Multiple of the backward passes, or of the gradient norm, of one step from which gradients were not cleared."""

MANY_TERMS = 8
"""Number of equal terms of a loss from which they may have been summed instead of averaged."""

MANY_ELEMENTS = 16
"""Number of elements from which the steps along the gradient of their sum may be too long."""

SUMMED = 4
"""Number of backward passes of one step from which they may have been summed instead of averaged."""


def accumulated_gradients(evidence: Evidence) -> Cause | None:
    """Return the cause if gradients are not cleared between steps, or summed where they should be averaged."""
    for rule in (
        _not_cleared,
        _not_cleared_in_closure,
        _changed_after_each_pass,
        _summed_passes,
        _larger_than_the_batch,
        _summed_loss,
        _sum_of_elements,
        _summed_terms,
    ):
        cause = rule(evidence)
        if cause is not None:
            return cause
    return None


def _not_cleared(evidence: Evidence) -> Cause | None:
    """Return the cause if the number of backward passes since gradients were cleared increases from step to step."""
    for place in range(max(len(evidence.history), len(evidence.first))):
        passes = curve(evidence, "backward_passes", optimizer=place).finite
        expected = max(curve(evidence, "micro_batches", optimizer=place).last or 1.0, 1.0)
        most = passes.greatest or 0.0
        if most < UNCLEARED * expected or len(passes) < 3 or not float((np.diff(passes.value) > 0).mean()) > 0.5:
            continue
        return _cause(
            0.95,
            f"{most:.0f} backward passes have added to the gradients since they were cleared; a step takes "
            f"{expected:.0f}.",
            "clear the gradients before the backward pass of each step: `optimizer.zero_grad()`",
        )
    return None


def _not_cleared_in_closure(evidence: Evidence) -> Cause | None:
    """Return the cause if a closure is evaluated several times in a step without clearing the gradients."""
    if evidence.uncleared_evaluations < UNCLEARED:
        return None
    return _cause(
        0.95,
        f"The optimizer evaluates its closure up to {evidence.uncleared_evaluations} times in one step, and "
        "the gradients are not cleared in between: each evaluation adds to those before.",
        "clear the gradients in the closure, before its backward pass: `optimizer.zero_grad()`",
    )


def _changed_after_each_pass(evidence: Evidence) -> Cause | None:
    """Return the cause if the loop makes the gradients larger again and again while they are accumulated."""
    changes = evidence.first_changes
    growth = math.prod(changes)
    if len(changes) < 2 or not UNCLEARED <= growth < math.inf or not trend(evidence).has_diverged:
        return None
    return _cause(
        0.7,
        f"While the gradients of the first step were accumulated, the loop itself changed them after {len(changes)} of "
        f"the backward passes, those of earlier passes each time again, which made them {growth:.3g} times as large.",
        "change the gradients once, after the last backward pass, right before the step of the optimizer",
    )


def _larger_than_the_batch(evidence: Evidence) -> Cause | None:
    """Return the cause if the gradient is several times that of its only batch."""
    experiments = evidence.experiments
    held = experiments.memory_grad_norm if experiments is not None else None
    alone = experiments.batch_grad_norm if experiments is not None else None
    if not held or not alone or not UNCLEARED * alone <= held < math.inf:
        return None
    if (curve(evidence, "micro_batches").last or 1.0) > 1 or not trend(evidence).has_diverged:
        return None
    return _cause(
        0.6,
        f"The gradient that the optimizer gets has a norm of {held:.3g}; that of the batch alone is {alone:.3g}.",
        "clear the gradients before the backward pass of each step: `optimizer.zero_grad()`",
    )


def _summed_passes(evidence: Evidence) -> Cause | None:
    """Return the cause if a step adds up backward passes of losses that are not divided by their number."""
    passes = curve(evidence, "backward_passes").last
    if passes is None and evidence.replay is not None:
        passes = float(len(evidence.replay.backward_losses))
    # The training loop divides the losses of passes that it runs itself.
    own = evidence.run.accumulate if evidence.run.automatic else 1
    if passes is None or passes < max(SUMMED, own + 1) or not trend(evidence).has_diverged:
        return None
    if uses_adaptive_optimizer(evidence.run) or _is_a_guess(evidence, passes) or _is_divided(evidence, passes):
        return None  # the scale of the gradients cancels out, or the losses are divided
    is_whole = _losses_are_whole(evidence) or _is_a_guess(evidence, 1.0)
    # Fewer passes may be those of several tasks, and the small increase of the gradient seldom makes a run fail.
    if not (is_whole or (passes >= MANY_TERMS and _is_undivided(evidence, passes))):
        return None
    divided = code_of(evidence.run).backward(f"loss / {passes:.0f}")
    return _cause(
        0.85 if is_whole else 0.65,
        f"Each step adds up the gradients of {passes:.0f} backward passes, and each of them takes the whole "
        + ("mean loss of its part." if is_whole else "loss of its part: nothing divides it by their number."),
        f"divide each loss, so that the sum is an average: {divided}",
    )


def _is_a_guess(evidence: Evidence, divisor: float) -> bool:
    """Return whether the first loss times `divisor` is that of a random guess among the outputs of the last layer."""
    first, weights = loss_curve(evidence).first, layers(evidence.run)
    classes = weights[-1].shape[0] if weights else 0
    return first is not None and classes > 1 and math.isclose(first * divisor, math.log(classes), rel_tol=0.25)


def _is_divided(evidence: Evidence, passes: float) -> bool:
    """Return whether the loop divides each loss before its backward pass, by what it passed or by a replay."""
    if evidence.loss_factor is not None and abs(evidence.loss_factor) < 2 / passes:
        return True
    replay = evidence.replay
    if replay is None or len(replay.backward_losses) < SUMMED or _losses_are_whole(evidence):
        return False
    values = [term.value for term in replay.losses if term.value]
    return bool(values) and abs(replay.backward_losses[0] / values[0]) < 2 / passes


def _is_undivided(evidence: Evidence, passes: float) -> bool:
    """Return whether the first loss is known not to be divided by the number of passes.

    A loss may be divided by the number of its own rows or elements, which makes it a mean.
    """
    divisors, fields = evidence.loss_divisors, evidence.batch.fields if evidence.batch is not None else ()
    sizes = {size for one in fields if one.shape for size in (one.shape[0], math.prod(one.shape))} - {round(passes)}
    return divisors is not None and all(abs(one) < 0.9 * passes or one in sizes for one in divisors)


def _losses_are_whole(evidence: Evidence) -> bool:
    """Return whether the loss of each backward pass is the undivided value of a loss function."""
    replay = evidence.replay
    if replay is None or len(replay.backward_losses) < SUMMED:
        return False
    values = [term.value for term in replay.losses if term.value is not None]
    pairs = list(zip(replay.backward_losses, values, strict=False))
    return len(pairs) >= SUMMED and all(math.isclose(one, other, rel_tol=1e-3) for one, other in pairs)


def _summed_loss(evidence: Evidence) -> Cause | None:
    """Return the cause if a loss is larger than the mean over its elements can be, and is therefore their sum.

    A sum that is divided by the number of rows is their mean, as usual.
    """
    if evidence.replay is None or not trend(evidence).has_diverged:
        return None
    for term in evidence.replay.losses:
        most = _largest_mean(term)
        if most is None or term.value is None or not math.inf > term.value > 1.01 * most > 0:
            continue
        if term.inputs[0].shape[0] in (evidence.loss_divisors or ()):
            continue
        return _cause(
            0.6 if term.inputs[0].shape[0] >= 16 else 0.4,
            f"`{term.name}` is {term.value:.4g}; a mean over its {math.prod(term.inputs[0].shape)} elements would be "
            f"at most {most:.4g}, so that it is a sum.",
            'take the mean in place of the sum: `reduction="mean"`',
            None if term.line is None else f"`{term.name}` at {term.file}:{term.line}",
        )
    return None


def _sum_of_elements(evidence: Evidence) -> Cause | None:
    """Return the cause if the first loss is the sum of a tensor, and updates of a usual rate overshoot."""
    count, search = evidence.summed or 0, line_search(evidence)
    if count < MANY_ELEMENTS or uses_adaptive_optimizer(evidence.run) or not trend(evidence).has_diverged:
        return None
    if exceeds_usual(evidence) or (search is not None and not search.overshoots):
        return None
    return _cause(
        0.6,
        f"The first loss is the sum of {count} elements, so that loss, gradient and each step are {count} times as "
        "large as those of their mean.",
        "take the mean in place of the sum: `.mean()`",
    )


def _summed_terms(evidence: Evidence) -> Cause | None:
    """Return the cause if the loss is a sum of many terms of the same kind, and the update overshoots."""
    replay, search = evidence.replay, line_search(evidence)
    if replay is None or replay.loss is None or search is None or not search.overshoots:
        return None
    for name in dict.fromkeys(term.name for term in replay.losses):
        values = [term.value for term in replay.losses if term.name == name and term.value is not None]
        total = sum(values)
        if len(values) < MANY_TERMS or not 0 < 0.99 * total <= replay.loss < math.inf:
            continue
        line = next(
            (f"`{name}` at {one.file}:{one.line}" for one in replay.losses if one.name == name and one.line), None
        )
        return _cause(
            0.6 if search.best_factor <= 2 / len(values) else 0.4,
            f"The loss adds up {len(values)} or more terms of `{name}`, of which none is divided by their number; with "
            f"{search.best_factor:g} of the update it would go from {search.start:.4g} to {search.least:.4g}.",
            "take the mean of the terms in place of their sum: `torch.stack(losses).mean()`",
            line,
        )
    return None


def _largest_mean(term: LossTerm) -> float | None:
    """Return the largest value that the mean of a loss over its elements can have, None if that is not known."""
    if len(term.inputs) < 2 or not term.inputs[0].shape:
        return None
    prediction, target = term.inputs[:2]
    if term.name == "nll_loss_forward":
        return None if prediction.least is None else -prediction.least
    if None in (prediction.least, prediction.greatest, target.least, target.greatest):
        return None
    furthest = max(
        abs((prediction.greatest or 0.0) - (target.least or 0.0)),
        abs((target.greatest or 0.0) - (prediction.least or 0.0)),
    )
    if not math.isfinite(furthest):
        return None
    return {"mse_loss": furthest * furthest, "smooth_l1_loss": furthest, "huber_loss": furthest}.get(term.name)


def _cause(confidence: float, sentence: str, remedy: str, where: str | None = None) -> Cause:
    return Cause("accumulated-gradients", where, (sentence,), confidence, (remedy,))
