"""Rectified units that large updates have made inactive for all inputs, so that no gradient passes them any more."""

from __future__ import annotations

import numpy as np

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import is_critical, loss_curve, signs
from lightning_gradexplode.diagnose.learning import UNLEARNED, learned
from lightning_gradexplode.diagnose.optimizers import usual_rate
from lightning_gradexplode.diagnose.remedies.rate import rate_factor
from lightning_gradexplode.diagnose.trends import trend
from lightning_gradexplode.records import Cause, Evidence, History

MIN_GROWTH = 1.2
"""Growth of the weights' norm from which updates at a usual rate were large enough to make units inactive."""

MIN_STEPS = 20
"""Number of steps with gradients of exactly zero, from which units are inactive for all inputs."""


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
    early = evidence.first[0] if evidence.first else evidence.history[0]
    since = _last_gradients(early, evidence.history[0])
    names = [one.name for one in evidence.applied] or [one.name for one in evidence.run.parameters]
    if len(since) < 2 or not names or names[0] not in since:
        return None
    steps, share, last = len(loss_curve(evidence).finite), learned(evidence, MIN_STEPS), since[names[0]]
    has_relu = any(one.kind == "ReLU" for one in evidence.run.modules)
    leaky = "use activations that pass a gradient for all inputs: `nn.LeakyReLU()` in place of `nn.ReLU()`"
    return Cause(
        "learning-rate",
        None,
        (
            f"`{names[0]}` had a gradient until step {last}; since then it is exactly zero, as for {len(since) - 1} "
            "further parameters: units behind them are not active for any input.",
            f"At a learning rate of {rate or 0:g} the norm of the weights has become {course.weight_growth:.3g} times "
            f"that of the start; after {steps} steps the loss is {share:.0%} of what it was.",
        ),
        0.55,
        (
            *remedies.lower_rate(evidence, rate_factor(evidence, course)),
            *([leaky] if has_relu else []),
            *remedies.warm_up(evidence),
        ),
    )


def _last_gradients(early: History, late: History) -> dict[str, int]:
    """Return the last step with a gradient of each parameter that had one, and none at the last `MIN_STEPS` steps."""
    found = {}
    for history in (early, late):
        norms = history.parameter_grad_norm
        if norms.ndim == 2 and norms.shape == (len(history.step), len(history.parameters)):
            for name, column in zip(history.parameters, norms.T, strict=True):
                if np.any(column > 0):
                    found[name] = int(history.step[np.flatnonzero(column > 0)[-1]])
    end = int(late.step[-1]) - MIN_STEPS if len(late.step) else 0
    return {name: step for name, step in found.items() if step <= end}
