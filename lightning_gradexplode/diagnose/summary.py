"""What happened in an incident, in sentences with numbers."""

from __future__ import annotations

from lightning_gradexplode.diagnose.batch import is_from_graph
from lightning_gradexplode.diagnose.causes.descent import multiplied_gradients
from lightning_gradexplode.diagnose.curves import critical_step, curve, failing_step, first_nonfinite, loss_curve
from lightning_gradexplode.diagnose.outside_changes import is_new_level, outside_change
from lightning_gradexplode.diagnose.short_steps import rises_in_short_steps
from lightning_gradexplode.diagnose.trends import initial_weight_norm, trend
from lightning_gradexplode.records import Evidence, Finding, Severity


def what_happened(evidence: Evidence) -> str:
    """Return what happened, in one or two sentences; "the loss" is that of the step named beside it."""
    failed = first_nonfinite(evidence)
    sentence = _growth(evidence) if failed is None else _failure(evidence, failed)
    if evidence.update_is_harmless:
        sentence += " All gradients of that step are zero, so that no weight is harmed."
    elif evidence.is_left_out:
        sentence += " The training loop runs no optimizer step for it, so that no weight is harmed."
    elif not evidence.weights_are_finite and (failed is None or failed.sign != "nonfinite-weight"):
        sentence += " The weights are not finite any more."
    return sentence


def _failure(evidence: Evidence, failed: Finding) -> str:
    step = failed.step
    loss = loss_curve(evidence)
    before = loss.before(step).finite
    if failed.sign == "nonfinite-loss":
        word = "infinite" if failed.value in (float("inf"), float("-inf")) else "NaN"
        last = f"; {_when(int(before.step[-1]), step)} it was {before.last:.4g}" if before.last is not None else ""
        start = "; there is no earlier step" if not len(loss.before(step)) else ""
        what = f"the loss is {word}"
        if evidence.raised:
            what = f"the step raised {evidence.raised.rstrip('.')}, after a value of it was not finite"
            last = last.replace(" it was ", " the loss was ")
        text = f"At step {step}{_batch(evidence, step)} {what}{last or start}."
    else:
        now = loss.at(step)
        value = f" while the loss is {now:.4g}" if now is not None else ""
        if failed.sign == "nonfinite-gradient":
            text = f"At step {step}{_batch(evidence, step)} the gradient is not finite{value}."
        else:
            norm = curve(evidence, "grad_norm").at(step)
            norm_text = f" and the gradient norm {norm:.3g}" if norm is not None else ""
            finite = f": the loss is {now:.4g}{norm_text}" if now is not None else ""
            text = f"At step {step}{_batch(evidence, step)} the update made weights that are not finite{finite}."
    if trend(evidence).has_diverged:
        text += f" Before that, {_growth_in_numbers(evidence)}."
    return text


def _when(earlier: int, step: int) -> str:
    return "one step before" if earlier == step - 1 else f"at step {earlier}"


def _growth(evidence: Evidence) -> str:
    serious = [one for one in evidence.findings if one.severity is Severity.CRITICAL]
    finding = (
        serious or [one for one in evidence.findings if one.severity is Severity.WARNING] or list(evidence.findings)
    )
    if not finding:
        return f"An incident began at step {evidence.step}."
    text = f"At step {finding[0].step}{_batch(evidence, finding[0].step)} {finding[0].message.rstrip('.')}."
    if trend(evidence).has_diverged:
        numbers = _growth_in_numbers(evidence, _NAMED.get(finding[0].sign))
        text += f" {numbers[0].upper()}{numbers[1:]}." if numbers else ""
    return text


_NAMED = {"diverging-loss": "loss", "unstable-loss": "loss", "weight-growth": "weight_norm"}
"""The quantity whose growth is in the message of a finding, by its sign."""


def _growth_in_numbers(evidence: Evidence, named: str | None = None) -> str:
    """Return first and last finite values of what has grown the most: loss, gradient norm or weights.

    Args:
        evidence: The evidence.
        named: A quantity that is not among them, since a sentence before has it; if nothing else has grown, the result
            is empty.
    """
    course = trend(evidence)
    names = (
        ("the loss", "loss", course.loss_rise / 4),
        ("the gradient norm", "grad_norm", course.gradient_growth / 30),
        ("the norm of the weights", "weight_norm", course.weight_growth / 2),
    )
    parts = []
    for words, name, grown in names:
        values = curve(evidence, name).before(critical_step(evidence) + 1).finite
        if name != named and grown >= 1 and len(values) > 1:
            parts.append(
                f"{words} went from {values.first:.4g} at step {int(values.step[0])} to {values.last:.4g} at step "
                f"{int(values.step[-1])}"
            )
    if not parts and named is not None:
        return ""
    return " and ".join(parts[:2]) or f"the weights are {course.weight_growth:.3g} times as large as at the start"


def _batch(evidence: Evidence, step: int) -> str:
    """Return the batch of a step in parentheses; empty if it is not known: only that of the critical step is."""
    batch = evidence.batch
    if batch is None or batch.batch_idx is None or step != critical_step(evidence):
        return ""
    rank = "" if batch.rank is None else f" of rank {batch.rank}"
    return f" (batch {batch.batch_idx} of epoch {batch.epoch}{rank})"


def observations(evidence: Evidence) -> tuple[str, ...]:
    """Return the measurements in sentences, for a diagnosis without a cause."""
    course = trend(evidence)
    sentences = []
    change, multiplied = outside_change(evidence), multiplied_gradients(evidence)
    if change is not None:
        sentences.append(change.sentence)
    elif multiplied is not None:
        sentences.append(multiplied.sentence)
    elif evidence.moves_weights:
        sentences.append(
            "The loop itself writes to the weights between the backward pass and the optimizer's step, as "
            "sharpness-aware minimization does: the distance by which it moves them may be too large."
        )
    elif rises_in_short_steps(evidence):
        sentences.append(
            "The loss began to rise in steps that are too short to overshoot: they go upward, as along gradients of a "
            "wrong sign, or something else has changed the loss."
        )
    elif is_new_level(evidence):
        sentences.append("The loss has jumped and stays up while updates are ordinary, as if the data had changed.")
    factors = {
        words: factor
        for words, name, factor, least in (
            ("gradient norm", "grad_norm", course.gradient_growth, 2),
            ("norm of the weights", "weight_norm", course.weight_growth, 1 if initial_weight_norm(evidence) else 2),
        )
        if len(curve(evidence, name).before(failing_step(evidence)).finite) >= least
    }
    if factors:
        span = "step" if course.steps == 1 else f"{course.steps} steps"
        changed = " and ".join(
            f"the {words} has changed by a factor of {factor:.3g}" for words, factor in factors.items()
        )
        sentences.append(f"In the {span} before it, {changed}.")
    fields = evidence.batch.fields if evidence.batch is not None else ()
    if fields and not any(one.nan_count or one.inf_count or is_from_graph(one) for one in fields):
        sentences.append("The batch holds no NaN and no infinity.")
    replay = evidence.replay
    if replay is None:
        sentences.append("The step was not computed again.")
    elif replay.status == "finite":
        sentences.append("Computed again, the step is finite.")
    elif replay.reason:
        sentences.append(f"The step could not be computed again: {replay.reason.rstrip('.')}.")
    return tuple(sentences) or ("Neither gradients nor weights are known of earlier steps.",)
