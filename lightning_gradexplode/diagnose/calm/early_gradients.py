"""An early gradient so large that the running squares of an optimizer keep its later steps short."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.update_sizes import ADAMS
from lightning_gradexplode.diagnose.curves import curve, last_level
from lightning_gradexplode.diagnose.learning import UNLEARNED, learned
from lightning_gradexplode.diagnose.optimizers import numbers_of
from lightning_gradexplode.records import Cause, Evidence

MIN_EXCESS = 100.0
"""Norm that the running squares correspond to over that of the present gradients, from which nothing is learned: the
steps are as short as at a hundredth of the learning rate."""

MIN_STEPS = 30
"""Number of steps from which momentum has forgotten the gradient, so that steps have been short for long enough."""


def early_gradient_remains(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if nothing is learned, and running squares are still those of one far larger gradient.

    The running average of squares is that of Adam, with its correction for the first steps (Kingma and Ba, 2015,
    algorithm 1), of the norm of all gradients instead of single elements.
    """
    clipped, norms = curve(evidence, "grad_norm_clipped").finite, curve(evidence, "grad_norm").finite
    norms = clipped if len(clipped) == len(norms) else norms
    share = learned(evidence, MIN_STEPS)
    if len(norms) < MIN_STEPS or len(evidence.run.optimizers) != 1 or share < UNLEARNED:
        return
    (one,) = evidence.run.optimizers
    decay = numbers_of(one.groups[0]).get("beta2", 0.999) if one.groups else 0.999
    if one.kind not in ADAMS or one.has_state or not 0 < decay < 1:
        return
    age = int(norms.step[-1]) - norms.step
    sizes = (1 - decay) * decay**age * norms.value**2 / (1 - decay ** (int(norms.step[-1] - norms.step[0]) + 1))
    held, usual = math.sqrt(float(sizes.sum())), last_level(norms.value)
    largest = int(sizes.argmax())
    if not 0 < MIN_EXCESS * usual <= held or sizes[largest] < 0.5 * sizes.sum():
        return
    step = int(norms.step[largest])
    yield Cause(
        "optimizer-state",
        f"optimizer {one.kind}",
        (
            f"The gradient norm of step {step} was {norms.value[largest]:.3g}; later it is about {usual:.3g}.",
            f"The running squares of {one.kind} remember it: at step {int(norms.step[-1])} they are those of a norm of "
            f"{held:.3g}, so that each step is about {held / usual:.2g} times as short as without it.",
            f"After {len(norms)} steps the loss is {share:.0%} of what it was.",
        ),
        0.75,
        (
            f"look at what made the gradient of step {step}: its batch, and buffers of gradients that did not start at "
            "zero",
            *remedies.clip(evidence),
        ),
    )
