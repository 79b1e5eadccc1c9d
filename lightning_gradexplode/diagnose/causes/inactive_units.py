"""Rectified units that large updates have made inactive for all inputs, so that no gradient passes them any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import curve, fifths, is_critical, loss_curve, signs
from lightning_gradexplode.diagnose.layers import code_of_parameter
from lightning_gradexplode.diagnose.learning import ENOUGH, UNLEARNED, learned
from lightning_gradexplode.diagnose.optimizers import usual_rate
from lightning_gradexplode.diagnose.remedies.rate import rate_factor
from lightning_gradexplode.diagnose.trends import DIVERGED_WEIGHTS, initial_weight_norm, trend
from lightning_gradexplode.records import Cause, Evidence, FloatArray, History

MIN_GROWTH = 1.2
"""Growth of the weights' norm from which updates at a usual rate were large enough to make units inactive."""

FALLS = 0.8
"""Level of the loss, relative to an earlier one, below which it falls."""

DONE = 0.1
"""Share of its first values below which the loss of a run has come down, such as a hinge loss to exactly zero."""

MIN_STEPS = 20
"""Number of steps with gradients of exactly zero, from which units are inactive for all inputs."""


def last_gradients(evidence: Evidence) -> dict[str, int]:
    """Return the last step with a gradient of each parameter that had one, and none at the last `MIN_STEPS` steps."""
    late, found = evidence.history[0], {}
    for history in (*evidence.first[:1], late):
        for name, column in _norms_by_parameter(history):
            if np.any(column > 0):
                found[name] = int(history.step[np.flatnonzero(column > 0)[-1]])
    end = int(late.step[-1]) - MIN_STEPS if len(late.step) else 0
    return {name: step for name, step in found.items() if step <= end}


def _norms_by_parameter(history: History) -> Iterator[tuple[str, FloatArray]]:
    """Iterate over the parameters whose gradient norms were recorded at some steps, with these norms."""
    norms = history.parameter_grad_norm
    if norms.ndim == 2 and len(norms) and norms.shape == (len(history.step), len(history.parameters)):
        yield from zip(history.parameters, norms.T, strict=True)


def units_became_inactive(evidence: Evidence) -> Cause | None:
    """Return the cause if the first layer has lost its gradient during a run that has learned nothing.

    Parts of a network that are not used any more, such as the head of a loss that was switched off, are not its first
    layer, and the rest of the network learns.
    """
    course, rate, usual = trend(evidence), remedies.learning_rate(evidence), usual_rate(evidence.run)
    if "zero-gradient" not in signs(evidence) or is_critical(evidence) or len(evidence.history) != 1:
        return None
    is_high = rate is not None and usual is not None and rate > usual[1]
    if not (is_high or course.weight_growth >= MIN_GROWTH) or learned(evidence, MIN_STEPS) < UNLEARNED:
        return None
    since, first = last_gradients(evidence), _first_layer(evidence)
    if len(since) < 2 or first not in since or first in evidence.frozen:
        return None
    steps, share = len(loss_curve(evidence).finite), learned(evidence, MIN_STEPS)
    return _cause(evidence, 0.55, first, since, f"after {steps} steps the loss is {share:.0%} of what it was")


def units_never_active(evidence: Evidence) -> Cause | None:
    """Return the cause if no gradient has ever passed a function of the user's own, such as a spike.

    Its derivative is then probably zero for all that it takes, as of units that start far below their threshold.
    """
    if "zero-gradient" not in signs(evidence) or is_critical(evidence) or not evidence.own_functions:
        return None
    norms = [one.parameter_grad_norm for one in (*evidence.first, *evidence.history)]
    known = [one for one in norms if one.size]
    if not known or any(np.any(one != 0) for one in known):
        return None
    name = evidence.own_functions[0].name
    return Cause(
        "initialization",
        f"`{name}`",
        (
            f"All gradients are exactly zero from the first step on. The loss contains `{name}`, whose backward pass "
            "is the user's own: it may return zero for all that it takes, as for units that are never active.",
        ),
        0.5,
        (
            f"start where the derivative of `{name}` is not zero: larger weights or inputs in front of it, a lower "
            "threshold, or a derivative that is positive further away from the threshold",
            "look at what its `backward` returns; if it is meant to be the exact derivative: "
            f"`torch.autograd.gradcheck({name}.apply, inputs)`",
        ),
    )


def weights_start_at_zero(evidence: Evidence) -> Cause | None:
    """Return the cause if several weight matrices start at zero, and none of them has ever had a gradient.

    The gradient of each is then probably a product with another one. A single one, such as the second factor of a
    low-rank adapter, gets a gradient at the first step.
    """
    if "zero-gradient" not in signs(evidence) or is_critical(evidence):
        return None
    moved, known = set[str](), set[str]()
    for history in (*evidence.first, *evidence.history):
        for name, column in _norms_by_parameter(history):
            known.add(name)
            moved.update([name] if np.any(column != 0) else [])
    zero = [one for one in evidence.run.parameters if len(one.shape) > 1 and one.std == 0 and 0 not in one.shape]
    names = [one.name for one in zero if one.name in known - moved]
    if len(names) < 2:
        return None
    code = code_of_parameter(next(one for one in zero if one.name == names[0]))
    return Cause(
        "initialization",
        names[0],
        (
            f"`{names[0]}` and `{names[1]}`"
            + (f", and {len(names) - 2} more," if len(names) > 2 else "")
            + " are zero at the start, and their gradients have been exactly zero since, as where the gradient of each "
            "is a product with another of them.",
        ),
        0.9,
        (
            "start at most one of several factors at zero, the others at random numbers: "
            f"`nn.init.normal_({code}, std=0.02)`",
        ),
    )


def units_stay_inactive(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if most weights have lost their gradient after large updates, and the loss falls no more since.

    Other parts of the network, such as the biases of its heads, may have learned before.
    """
    if len(evidence.history) != 1:
        return
    since, first = last_gradients(evidence), _first_layer(evidence)
    if first not in since or first in evidence.frozen or 2 * len(since) < len(evidence.history[0].parameters):
        return
    if _growth_around(evidence, since[first]) < DIVERGED_WEIGHTS:
        return  # layers that were trained, and then frozen
    losses = loss_curve(evidence).since(since[first] + 1).finite.value
    levels = fifths(losses) if len(losses) >= ENOUGH else []
    if not levels or levels[-1] < FALLS * levels[0] or learned(evidence) < DONE:
        return
    yield _cause(evidence, 0.75, first, since, f"the loss of the {len(losses)} steps since then has not come down")


def _growth_around(evidence: Evidence, step: int) -> float:
    """Return how many times the norm of the weights has grown from `ENOUGH` steps before a step to as many after it."""
    weights = curve(evidence, "weight_norm")
    before = weights.before(step - ENOUGH + 1).last or initial_weight_norm(evidence)
    around = weights.since(step - ENOUGH + 1).before(step + ENOUGH + 1)
    return (around.greatest or 0.0) / before if before else 0.0


def _cause(evidence: Evidence, confidence: float, first: str, since: Mapping[str, int], course: str) -> Cause:
    """Return the cause, with the course of the loss in words."""
    growth, rate = trend(evidence), remedies.learning_rate(evidence)
    has_relu = any(one.kind == "ReLU" for one in evidence.run.modules)
    leaky = "use activations that pass a gradient for all inputs: `nn.LeakyReLU()` in place of `nn.ReLU()`"
    return Cause(
        "learning-rate",
        None,
        (
            f"`{first}` had a gradient until step {since[first]}; since then it is exactly zero, as for "
            f"{len(since) - 1} further parameters: units behind them are not active for any input.",
            f"At a learning rate of {rate or 0:g} the norm of the weights has been up to {growth.weight_growth:.3g} "
            f"times that of the start; {course}.",
        ),
        confidence,
        (
            *remedies.lower_rate(evidence, rate_factor(evidence, growth)),
            *([leaky] if has_relu else []),
            *remedies.warm_up(evidence),
        ),
    )


def _first_layer(evidence: Evidence) -> str:
    """Return the first weight that the network applies."""
    names = [one.name for one in evidence.applied] or [one.name for one in evidence.run.parameters]
    return names[0] if names else ""
