"""Updates of a size that the optimizer's state, if it fits, does not make."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import curve, failing_step, history_at_fault, loss_curve
from lightning_gradexplode.diagnose.optimizers import is_wrapped, keeps_state, numbers_of
from lightning_gradexplode.diagnose.trends import initial_weight_norm
from lightning_gradexplode.records import Cause, Evidence, OptimizerFacts

MAX_EXCESS = 3.0
"""Multiple of the largest update that the optimizer's formula allows, up to which an update fits its gradient."""

ADAMS = ("Adam", "AdamW", "Adamax", "NAdam")
"""The optimizers of torch whose updates are bounded by the learning rate."""

_OTHER_FORMULA = (
    "Something in its own formula differs from that, such as the root of the running squares or the correction of the "
    "running averages."
)

UNBOUNDED = "radam"
"""Part of the names of variants of Adam whose first updates have no bound."""

FRESH, DISTURBS = 3.0, 4.0
"""Growth of the first update of an epoch over the one before, and of the loss after it, that show an emptied state."""


def first_excess(evidence: Evidence) -> tuple[OptimizerFacts, float, float] | None:
    """Return an optimizer, the norm of its first update, and the far smaller one that its formula makes at most."""
    place, weights = history_at_fault(evidence), initial_weight_norm(evidence)
    names = ("update_ratio", "weight_norm", "learning_rate")
    ratio, after, rate = (curve(evidence, name).at(evidence.run.first_step) for name in names)
    if place is None or place >= len(evidence.run.optimizers) or weights is None or not rate:
        return None
    one = evidence.run.optimizers[place]
    bound = _largest_update(evidence, one, rate)
    update = ratio * weights if ratio is not None else abs((after or weights) - weights)  # at least that
    return (one, update, bound) if bound is not None and update > MAX_EXCESS * bound > 0 else None


def beyond_bound(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first update is far larger than the optimizer's formula makes of the first gradient."""
    found = first_excess(evidence)
    if found is None:
        return
    one, update, bound = found
    sentences = (
        f"The first update has a norm of {update:.3g}; at this learning rate the formula of {one.kind} makes at most "
        f"{bound:.3g} of the first gradient.",
    )
    if one.has_state:
        yield Cause(
            "optimizer-state",
            f"optimizer {one.kind}",
            (*sentences, "The state that it started with belongs to other gradients, or was damaged on its way."),
            0.85,
            ("start with a fresh optimizer state in place of the restored one", *remedies.warm_up(evidence)),
        )
    elif "adam" in one.kind.lower():
        yield Cause(
            "optimizer-state",
            f"optimizer {one.kind}",
            (*sentences, _OTHER_FORMULA),
            0.7,
            ("use the optimizer of torch in its place: `torch.optim.AdamW`", *remedies.clip(evidence)),
        )


def later_beyond_bound(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the weights have grown by more than the formula of Adam allows, whatever the gradients are."""
    place, start = history_at_fault(evidence), evidence.run.first_step
    if place is None or place >= len(evidence.run.optimizers):
        return
    one = evidence.run.optimizers[place]
    if UNBOUNDED in one.kind.lower():
        return
    weights = curve(evidence, "weight_norm").before(failing_step(evidence)).since(start).finite
    rates, ratio = curve(evidence, "learning_rate"), curve(evidence, "update_ratio")
    steps, norms = weights.step.tolist(), weights.value.tolist()
    for first, last, before, after in zip(steps, steps[1:], norms, norms[1:], strict=False):
        rate, update = rates.since(first + 1).before(last + 1).greatest, ratio.at(last)
        bound = None if rate is None else _largest_update_of_adam(evidence, one, rate, after)
        if bound is None:
            return
        bound *= last - first
        is_of_another = update is not None and update * before <= bound  # something else has written to the weights
        if after - before > MAX_EXCESS * bound > 0 and not is_of_another:
            sentence = (
                f"At step {last} the norm of the weights went from {before:.3g} to {after:.3g}; at this learning rate "
                f"the formula of {one.kind if one.kind in ADAMS else 'Adam'} moves them by at most {bound:.3g}, "
                "whatever the gradients are."
            )
            why = "Its running averages do not fit its gradients: they were emptied, loaded or written to"
            advice = (
                "leave the state of the optimizer as it is between two steps; to start anew, create an optimizer",
                *remedies.warm_up(evidence),
            )
            if one.kind not in ADAMS:
                why = _OTHER_FORMULA.rstrip(".")
                advice = ("use the optimizer of torch in its place: `torch.optim.AdamW`", *remedies.clip(evidence))
            why += ", unless something else has written to the weights." if update is None else "."
            confidence = 0.6 if update is None else 0.85 if one.kind in ADAMS else 0.7
            yield Cause("optimizer-state", f"optimizer {one.kind}", (sentence, why), confidence, advice)
            return


def _largest_update(evidence: Evidence, optimizer: OptimizerFacts, rate: float) -> float | None:
    """Return the largest norm of a first update that a fitting state allows, None if that is not known.

    With momentum, gradients that stay the same add up to 1 / (1 - momentum) of them.
    """
    weights = initial_weight_norm(evidence) or 0.0
    if "adam" in optimizer.kind.lower():
        return _largest_update_of_adam(evidence, optimizer, rate, weights)
    numbers = numbers_of(optimizer.groups[0]) if optimizer.groups else {}
    decay = numbers.get("weight_decay", 0.0) * weights
    norm = curve(evidence, "grad_norm").first
    if optimizer.kind != "SGD" or norm is None or not 0 <= numbers.get("momentum", 0.0) < 1:
        return None
    return rate * (norm + decay) / (1 - numbers.get("momentum", 0.0))


def _largest_update_of_adam(
    evidence: Evidence, optimizer: OptimizerFacts, rate: float, weight_norm: float
) -> float | None:
    """Return the largest norm of an update of Adam, None for other optimizers.

    It moves no weight by more than the rate times (1 - beta1) / sqrt(1 - beta2), or the rate (Kingma and Ba, 2015,
    section 2.1).
    """
    if "adam" not in optimizer.kind.lower() or is_wrapped(optimizer):
        return None
    numbers = numbers_of(optimizer.groups[0]) if optimizer.groups else {}
    beta1, beta2 = numbers.get("beta1", 0.9), numbers.get("beta2", 0.999)
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        return None
    place = history_at_fault(evidence)
    count = sum(math.prod(one.shape) for one in evidence.run.parameters if one.optimizer == place)
    decay = numbers.get("weight_decay", 0.0) * weight_norm
    return rate * (math.sqrt(count) * max(1.0, (1 - beta1) / math.sqrt(1 - beta2)) + decay)


def forgotten_each_epoch(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if the first update of each epoch is as large as without a state, and the loss jumps after it."""
    epoch, ratio, loss = curve(evidence, "epoch").finite, curve(evidence, "update_ratio"), loss_curve(evidence)
    rate = curve(evidence, "learning_rate")
    starts = epoch.step[1:][np.diff(epoch.value) > 0].tolist()
    jumps = []
    for start in starts:
        now, before, level = ratio.at(start), ratio.at(start - 1), loss.at(start)
        after = loss.since(start + 1).before(start + 4).greatest
        if None in (now, before, level, after) or (rate.at(start) or 0.0) > 1.1 * (rate.at(start - 1) or 0.0):
            continue
        if now and before and level and after:
            jumps.append((now / before, after / level))
    clear = [one for one in jumps if one[0] >= FRESH and one[1] >= DISTURBS]
    if len(clear) < 3 or len(clear) < 0.7 * len(jumps):
        return
    for one in evidence.run.optimizers:
        if keeps_state(one):
            yield Cause(
                "optimizer-state",
                f"optimizer {one.kind}",
                (
                    f"At {len(clear)} of {len(jumps)} starts of an epoch the first update is {clear[-1][0]:.3g} times "
                    f"the one before, and the loss is {clear[-1][1]:.3g} times as high within three steps, at the same "
                    "learning rate: as with an optimizer whose state was emptied.",
                ),
                0.8,
                ("create the optimizer once, before the first epoch, and keep its state",),
            )
            return
