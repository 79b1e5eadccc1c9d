"""A state or settings of the optimizer that do not fit the weights."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.precision import weights_type
from lightning_gradexplode.diagnose.causes.update_sizes import (
    DISTURBS,
    beyond_bound,
    forgotten_each_epoch,
    later_beyond_bound,
)
from lightning_gradexplode.diagnose.curves import (
    critical_step,
    curve,
    first_nonfinite,
    loss_curve,
)
from lightning_gradexplode.diagnose.first_update import FAILS_WITHIN, first_update_ratio
from lightning_gradexplode.diagnose.layers import is_trained
from lightning_gradexplode.diagnose.optimizers import is_of_torch, keeps_state, numbers_of, usual_rate
from lightning_gradexplode.diagnose.remedies.loop_code import code_of
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence, OptimizerFacts

OTHER_GRADIENTS = 30.0
"""Multiple of the gradients that correspond to the running squares from which a gradient does not fit them."""


def optimizer_state(evidence: Evidence) -> Cause | None:
    """Return the cause if the optimizer's state or settings do not fit the weights."""
    rules = (
        _fresh_on_trained_weights,
        _of_other_gradients,
        _settings,
        beyond_bound,
        later_beyond_bound,
        forgotten_each_epoch,
        _lost_weights,
    )
    return max((cause for rule in rules for cause in rule(evidence)), key=lambda one: one.confidence, default=None)


def _settings(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause for each setting with which updates grow without a bound, or divide by zero."""
    course = trend(evidence)
    weight_first = _weights_fail_first(evidence)
    for one in evidence.run.optimizers:
        for group in one.groups:
            numbers = numbers_of(group)
            eps, beta1, beta2 = numbers.get("eps"), numbers.get("beta1"), numbers.get("beta2")
            momentum, decay, rate = numbers.get("momentum"), numbers.get("weight_decay", 0.0), numbers.get("lr", 0.0)
            # Others may use it otherwise: AdaBelief adds its default of 1e-16 to an average at each step.
            is_small = eps is not None and eps < 1e-12 and is_of_torch(one)
            if is_small and (weight_first or course.has_diverged):
                yield _of_setting(
                    one,
                    f"`eps={eps:g}` is next to nothing: where gradients are zero or tiny, {one.kind} divides by zero.",
                    0.9 if weight_first else 0.7,
                    "set the usual epsilon: `eps=1e-8`",
                )
            if beta1 is not None and beta2 is not None and course.has_diverged and beta1**2 > beta2:
                yield _of_setting(
                    one,
                    f"beta1={beta1:g} is above the square root of beta2={beta2:g}: the mean of the gradients "
                    "outlives their size, and updates can grow without a bound.",
                    0.75,
                    "set the usual averages: `betas=(0.9, 0.999)`",
                )
            if momentum is not None and momentum >= 0.98 and course.has_diverged:
                yield _of_setting(
                    one,
                    f"momentum={momentum:g} adds up to {1 / max(1 - momentum, 1e-6):.3g} steps of the same direction.",
                    0.9 if momentum >= 1 else 0.5,
                    "set the usual momentum: `momentum=0.9`",
                )
            if course.weight_growth > 2 and (decay < 0 or decay * rate > 1.5):
                yield _of_setting(
                    one,
                    f"weight_decay={decay:g} at a learning rate of {rate:g} makes the weights larger at each step, "
                    "not smaller.",
                    0.9,
                    "set a usual weight decay: `weight_decay=0.01`",
                )


def _lost_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if an update with finite gradients made the weights non-finite."""
    finding, fault, run = first_nonfinite(evidence), evidence.update_fault, evidence.run
    if finding is None or not _weights_fail_first(evidence) or weights_type(run) is not None:
        return
    one = run.optimizers[fault.optimizer] if fault is not None and fault.optimizer < len(run.optimizers) else None
    sentences = [f"At step {finding.step} loss and gradients are finite, and the weights are not after the update."]
    if fault is not None:
        held = ", ".join(f"{name} {value:.3g}" for name, value in fault.state.items())
        before = "" if fault.weight_before is None else f" went from {fault.weight_before:.3g}"
        slope = "" if fault.gradient is None else f" with a gradient of {fault.gradient:.3g}"
        sentences.append(
            f"A weight of `{fault.parameter}`{before} to {fault.weight}{slope}; its state: {held or 'none'}."
        )
    advice = "start with a fresh optimizer state, and look at its epsilon: `eps=1e-8`"
    if one is not None and fault is not None and not is_of_torch(one):
        is_unused = " where a gradient is zero" if fault.gradient == 0 else ""
        advice = f"look at what the formula of {one.kind} divides by{is_unused}, and bound it: `norm.clamp(min=1e-8)`"
    yield Cause(
        "optimizer-state",
        fault.parameter if fault is not None and fault.parameter else finding.where,
        tuple(sentences),
        0.5,
        (advice, *remedies.rollback(evidence)),
    )


def _of_setting(optimizer: OptimizerFacts, sentence: str, confidence: float, remedy: str) -> Cause:
    return Cause("optimizer-state", f"optimizer {optimizer.kind}", (sentence,), confidence, (remedy,))


def _weights_fail_first(evidence: Evidence) -> bool:
    """Return whether the weights stopped being finite at a step whose loss and gradients were finite."""
    finding = first_nonfinite(evidence)
    return finding is not None and finding.sign == "nonfinite-weight" and not trend(evidence).has_diverged


def _fresh_on_trained_weights(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the run starts with trained weights and an optimizer without a state."""
    start = evidence.run.first_step
    after = critical_step(evidence) - start
    if not is_trained(evidence) or not 0 <= after <= FAILS_WITHIN:
        return
    if not (trend(evidence).has_diverged or _weights_fail_first(evidence)):
        return
    loss, ratio = loss_curve(evidence).first, first_update_ratio(evidence)
    for one in evidence.run.optimizers:
        if one.has_state or one.steps_taken or not keeps_state(one):
            continue
        sentences = [
            f"The run begins at step {start} with trained weights"
            + (f" (its first loss is {loss:.4g})" if loss is not None else "")
            + f" and an empty state of {one.kind}; it fails {after} step{'s' if after != 1 else ''} later."
        ]
        if ratio is not None:
            sentences.append(f"The first update changed the weights by {ratio:.3g} times their norm.")
        # With a rate far above the usual ones, the first updates are too large whatever the state is.
        yield fresh_state(evidence, one, sentences, 0.4 if _has_far_too_high_rate(evidence) else 0.85)


def _has_far_too_high_rate(evidence: Evidence) -> bool:
    rate, usual = remedies.learning_rate(evidence), usual_rate(evidence.run)
    return rate is not None and usual is not None and rate > 10 * usual[1]


def _of_other_gradients(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first gradients are far larger than those of the optimizer's initial running squares."""
    first = curve(evidence, "grad_norm").first
    after = critical_step(evidence) - evidence.run.first_step
    if len(evidence.run.optimizers) != 1 or first is None or not 0 <= after <= FAILS_WITHIN:
        return
    loss = loss_curve(evidence).finite.before(evidence.run.first_step + 6).value
    rises = len(loss) > 1 and loss[0] > 0 and float(loss.max()) > DISTURBS * float(loss[0])
    if not (rises or trend(evidence).has_diverged or _weights_fail_first(evidence)):
        return
    (one,) = evidence.run.optimizers
    held = one.state_grad_norm
    if held is None or one.steps_taken < 1 or not first > OTHER_GRADIENTS * held:
        return
    state = "its running averages are zero" if held == 0 else f"its running squares are those of a norm of {held:.3g}"
    yield Cause(
        "optimizer-state",
        f"optimizer {one.kind}",
        (
            f"The state of {one.kind} counts {one.steps_taken} steps, and {state}; the first gradient has a norm of "
            f"{first:.3g}. It divides by them, so that its updates are too large until they have caught up.",
        ),
        0.85,
        ("start with a fresh optimizer state in place of the restored one", *remedies.warm_up(evidence)),
    )


def fresh_state(evidence: Evidence, optimizer: OptimizerFacts, sentences: list[str], confidence: float) -> Cause:
    """Return the cause that an optimizer without a state continues with trained weights."""
    return Cause(
        "optimizer-state",
        f"optimizer {optimizer.kind}",
        tuple(sentences),
        confidence,
        (
            f"load the state of the optimizer with the weights: {code_of(evidence.run).load_state}",
            *remedies.warm_up(evidence),
        ),
    )
