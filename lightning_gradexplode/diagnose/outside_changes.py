"""Changes that the optimizer did not make: of the weights, or lasting changes of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_gradexplode.diagnose.curves import critical_step, curve, failing_step, loss_curve
from lightning_gradexplode.diagnose.trends import JUMP, abrupt_step
from lightning_gradexplode.records import Evidence

MIN_CHANGE = 0.5
"""Share of the weights' norm by which it has to change in one step."""

BEYOND = 10.0
"""Multiple of the update's norm above which a change of the weights' norm was not made by the optimizer."""

SEVERAL_TIMES, MIN_GROWTH = 3.0, 0.02
"""Growth of the weights' norm in one step that was not made by the optimizer: a multiple of the largest growth by the
update, and at least this share of the norm."""

MIN_STEPS, MIN_SHARE_OF_STEPS = 4, 0.8
"""Number of such steps, and their share of the steps with a measured update, for a growth over many steps."""

ORDINARY = 0.05
"""Ratio of update to weights up to which a single update does not undo what was learned."""

LASTING_STEPS = 6
"""Number of steps after a jump of the loss that show whether it is lasting."""


@dataclass(frozen=True, slots=True)
class OutsideChange:
    """A change of the weights that no update explains.

    Args:
        step: The first step with the changed weights.
        before: Norm of the weights before.
        after: Norm of the weights after.
        update: Norm of that step's update; for a growth over many steps, the sum of the norms of all updates.
        last: The last step of a growth over many steps, None for a change in one step.
    """

    step: int
    before: float
    after: float
    update: float
    last: int | None = None

    @property
    def sentence(self) -> str:
        """A description of the change, with possible causes."""
        if self.last is not None:
            return (
                f"From step {self.step} to {self.last} the norm of the weights went from {self.before:.3g} to "
                f"{self.after:.3g}, and the norms of all updates add up to {self.update:.2g}: something other than the "
                "optimizer makes the weights larger at each step, such as a decay with a wrong sign that the loop "
                "applies itself."
            )
        return (
            f"Between steps {self.step - 1} and {self.step} the norm of the weights went from {self.before:.3g} to "
            f"{self.after:.3g}, and the update has a norm of {self.update:.2g}: something other than the optimizer has "
            "changed them, such as loaded or pruned weights, a write to `.data`, or a memory error."
        )


def outside_change(evidence: Evidence) -> OutsideChange | None:
    """Return the change of the weights just before the incident that the step's update does not explain, or None.

    By the triangle inequality, an update changes the norm of the weights by at most its own norm.
    """
    known = _measured_updates(evidence)
    first, end = min(evidence.step, critical_step(evidence)) - 2, failing_step(evidence)
    for step, before, after, ratio in known:
        update = ratio * max(before, after)
        if first <= step < end and abs(after - before) > max(MIN_CHANGE * before, BEYOND * update):
            return OutsideChange(step, before, after, update)
    return _growth_at_each_step(known)


def _measured_updates(evidence: Evidence) -> list[tuple[int, float, float, float]]:
    """Return steps, norms of the weights before and after each, and ratios of update to weights, where known."""
    norms, ratios = curve(evidence, "weight_norm").finite, curve(evidence, "update_ratio")
    known: list[tuple[int, float, float, float]] = []
    for place in range(1, len(norms)):
        step, before, after = int(norms.step[place]), float(norms.value[place - 1]), float(norms.value[place])
        ratio = ratios.at(step)
        if ratio is not None and norms.step[place - 1] == step - 1 and before > 0:
            known.append((step, before, after, ratio))
    return known


def _growth_at_each_step(known: list[tuple[int, float, float, float]]) -> OutsideChange | None:
    """Return the growth of the weights if nearly each update that was measured is too small for it."""
    grown = [one for one in known if one[2] > (1 + max(MIN_GROWTH, SEVERAL_TIMES * one[3])) * one[1]]
    if len(grown) < MIN_STEPS or len(grown) < MIN_SHARE_OF_STEPS * len(known):
        return None
    update = sum(ratio * after for _, _, after, ratio in known)
    return OutsideChange(known[0][0], known[0][1], known[-1][2], update, last=known[-1][0])


def is_new_level(evidence: Evidence) -> bool:
    """Return whether the loss jumped and stays high while updates are small, as with other data from then on."""
    step = abrupt_step(evidence, "loss")
    if step is None:
        return False
    loss, ratios = loss_curve(evidence).finite, curve(evidence, "update_ratio")
    before, after = float(np.abs(loss.before(step).value).max()), loss.since(step).value
    largest, since = ratios.before(step).greatest, ratios.since(step).greatest
    is_ordinary = largest is None or since is None or since <= max(2 * largest, ORDINARY)
    return len(after) >= LASTING_STEPS and is_ordinary and float(after[:LASTING_STEPS].min()) > JUMP / 3 * before
