"""Remedies that several causes share, with numbers of the run, and without those that are set already."""

from __future__ import annotations

import math

import numpy as np

from lightning_gradexplode.diagnose.batch import source_in_graph
from lightning_gradexplode.diagnose.curves import critical_step, curve, first_nonfinite
from lightning_gradexplode.diagnose.optimizers import highest_normalized_rate
from lightning_gradexplode.diagnose.remedies.loop_code import code_of
from lightning_gradexplode.records import Evidence
from lightning_gradexplode.records.replay import NO_REPLAY

SAME_SIZE, HUGE = 10.0, 1000.0
"""Growth of the gradient norm over the first steps, and a norm, from which a run has no usual norm to clip at."""


STEP_AGAIN = (
    "have the step computed again, which names the operation, its line and the batch: `GradientWatch(model, optimizer, "
    "step=lambda model, batch: ...)` that returns the loss, and `watch.batch(batch)` for each batch"
)


def responses(evidence: Evidence) -> set[str]:
    """Return the names of the monitor's responses, as ``on_explosion`` takes them."""
    names = {
        "SkipStep": "skip",
        "ReduceLearningRate": "reduce-lr",
        "Rollback": "rollback",
        "StopTraining": "stop",
        "SaveCheckpoint": "checkpoint",
        "RaiseError": "raise",
        "Warn": "warn",
    }
    return {names.get(one, one) for one in evidence.run.on_explosion}


def skip(evidence: Evidence) -> list[str]:
    """Return the advice to skip the updates of bad batches, unless that is set already or cannot help.

    If a batch makes the step raise an exception, the batch has to be left out. Skipping cannot help if no update is
    affected, as when a gradient scaler leaves it out, or if an update with a finite gradient made the weights
    non-finite.
    """
    if evidence.raised:
        return ["leave out such a batch before its forward pass, which raises an exception for it"]
    failed = first_nonfinite(evidence)
    was_taken = failed is not None and curve(evidence, "update_taken").at(failed.step) == 1.0
    is_of_scaler = failed is not None and evidence.run.scaler == "adaptive" and not was_taken
    is_of_update = failed is not None and failed.sign == "nonfinite-weight"
    reaches_weights = not (evidence.update_is_harmless or evidence.is_left_out or is_of_scaler)
    if "skip" in responses(evidence) or not reaches_weights or is_of_update:
        return []
    monitor = code_of(evidence.run).monitor('on_explosion="skip"')
    return [f"leave out the update of such a batch and go on: {monitor}"]


def rollback(evidence: Evidence) -> list[str]:
    """Return the advice to roll back to a state before an explosion, unless that is set already."""
    if "rollback" in responses(evidence):
        return []
    monitor = code_of(evidence.run).monitor('on_explosion="rollback"')
    return [f"go back to weights from before it: {monitor}"]


def clip(evidence: Evidence) -> list[str]:
    """Return the advice to clip to the usual norm of this run, or to a lower value if the run clips already."""
    usual = usual_norm(evidence)
    value = rounded(usual, 1) if usual is not None else None
    current = evidence.run.clip_val
    policy = evidence.run.clip_policy
    if policy == "auto":
        return []
    if current is None and policy is not None:
        current = _float(policy)
        if current is None:
            return []
    if current is not None:
        if value is None or value >= 0.7 * current:
            return []
        return [
            f"clip at {value:g} in place of {current:g}: the usual norm of the gradients of this run is {usual:.3g}"
        ]
    code = code_of(evidence.run)
    if value is None:
        return ["clip the gradients: " + code.monitor('clip="auto"')]
    return [f'clip the gradients at their usual norm in this run: {code.monitor(f"clip={value:g}")}, or `clip="auto"`']


def usual_norm(evidence: Evidence) -> float | None:
    """Return the median gradient norm of the calm steps before the incident.

    Returns:
        None if fewer than five are known, or if there was no usual norm: norms that grew from the start, or were huge.
    """
    calm = curve(evidence, "grad_norm").before(critical_step(evidence)).finite
    if len(calm) < 5:
        return None
    # The last steps before the first critical finding may be growing already.
    values = calm.value[: max(5, len(calm) // 2)]
    median = float(np.median(values))
    grew = float(np.median(values[-3:])) > SAME_SIZE * float(values[:3].min())
    return None if grew or median >= HUGE else median or None


def learning_rate(evidence: Evidence) -> float | None:
    """Return the learning rate at the incident, None if it is not known."""
    rates = curve(evidence, "learning_rate").before(critical_step(evidence) + 1)
    rate = rates.last
    if rate is None:
        configured = [group.get("lr") for one in evidence.run.optimizers for group in one.groups]
        known = [float(one) for one in configured if isinstance(one, (int, float)) and not isinstance(one, bool)]
        rate = max(known, default=None)
    return rate if rate is not None and math.isfinite(rate) and rate > 0 else None


def lower_rate(evidence: Evidence, factor: float) -> list[str]:
    """Return the advice to lower the learning rate by a factor below one."""
    rate = learning_rate(evidence)
    if rate is None:
        return [f"lower the learning rate to {rounded(factor, 1):g} of what it is"]
    highest = highest_normalized_rate(evidence.run)
    # With an optimizer that normalizes its steps, a far lower rate learns almost nothing, whatever it was before.
    lower = min(rate * factor, highest)
    if highest < math.inf:
        lower = max(lower, 0.1 * min(highest, rate))
    lower = rounded(lower, 1)
    return [f"lower the learning rate {_group_of(evidence, rate)}from {rate:g} to `lr={lower:g}`"]


def _group_of(evidence: Evidence, rate: float) -> str:
    """Return which parameter group has a learning rate, if that of all others is far lower; else nothing.

    The rate of a schedule is nearest to that which its group was configured with.
    """
    for one in evidence.run.optimizers:
        rates = [float(group.get("lr") or 0.0) for group in one.groups]
        highest = max(rates, default=0.0)
        others = [value for value in rates if value < highest]
        if len(others) == len(rates) - 1 and others and 10 * max(others) < min(rate, highest) and rate <= 2 * highest:
            return f"of `optimizer.param_groups[{rates.index(highest)}]` "
    return ""


def warm_up(evidence: Evidence) -> list[str]:
    """Return the advice to raise the rate over the first steps, unless it rises already or the run has a scheduler."""
    rates = curve(evidence, "learning_rate")
    if evidence.run.schedulers or (rates.first or 0.0) < 0.5 * (rates.greatest or 0.0):
        return []
    return [f"raise the learning rate over the first steps: `{code_of(evidence.run).warm_up}`"]


def anomaly_mode(evidence: Evidence) -> list[str]:
    """Return the advice to find the operation with autograd's anomaly detection, if no replay has found it."""
    replay = evidence.replay
    if replay is not None and replay.status in ("reproduced", "finite"):
        return []
    advice = ["find the operation with `torch.autograd.set_detect_anomaly(True)`"]
    is_plain = evidence.run.monitor == "GradientWatch"
    if is_plain and (evidence.batch is None or (replay is not None and replay.reason == NO_REPLAY)):
        advice.insert(0, STEP_AGAIN)
    if evidence.run.monitor in ("GradientWatch", "FabricWatch") and not _loss_is_known(evidence):
        advice.insert(0, "call `watch.loss(loss)` before the backward pass, so that its operations are known")
    return advice


def step_again(evidence: Evidence) -> list[str]:
    """Return the advice to have a plain loop's step computed again, if a tensor without a gradient was not finite.

    It may have been computed in the step, by operations that neither the autograd graph nor anomaly detection shows.
    """
    is_plain = evidence.run.monitor == "GradientWatch"
    return [STEP_AGAIN] if is_plain and source_in_graph(evidence) is not None else []


def own_functions(evidence: Evidence) -> list[str]:
    """Return the advice to check the derivatives of the user's own functions, if the loss contains any."""
    return [
        f"compare the backward pass of `{one.name}` with a numerical derivative: `torch.autograd.gradcheck("
        f"{one.name}.apply, inputs)` with inputs in float64"
        for one in evidence.own_functions[:1]
    ]


def _loss_is_known(evidence: Evidence) -> bool:
    return len(curve(evidence, "loss").finite) > 0 or any(one.sign == "nonfinite-loss" for one in evidence.findings)


def standardize(code: str) -> str:
    """Return the advice to standardize a field, by statistics of the training set."""
    # The standard deviation of a constant column is zero.
    return f"standardize it by the training set: `{code} = ({code} - mean) / (std + 1e-6)`"


def rounded(value: float, digits: int) -> float:
    """Return a number rounded to a number of significant digits."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
