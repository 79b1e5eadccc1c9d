"""Losses that LBFGS evaluates within one step, between which it changes the weights."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.curves import first_nonfinite, loss_curve
from lightning_gradexplode.records import Cause, Evidence


def loss_at_start_of_step(evidence: Evidence) -> float | None:
    """Return the first loss of the failed step, if only a later one of the same step was not finite."""
    found, replay = first_nonfinite(evidence), evidence.replay
    if found is None or replay is None or replay.loss is None or math.isfinite(replay.loss):
        return None
    if replay.step != found.step or {one.kind for one in evidence.run.optimizers} != {"LBFGS"}:
        return None
    loss = loss_curve(evidence).at(found.step)
    return loss if loss is not None and math.isfinite(loss) else None


def without_line_search(evidence: Evidence) -> Cause | None:
    """Return the cause if the loss has exploded within a step of LBFGS that does not search for its lengths."""
    loss, rate = loss_at_start_of_step(evidence), remedies.learning_rate(evidence)
    if loss is None or rate is None or any("line_search_fn" in one for one in evidence.run.optimizers[0].groups):
        return None
    return Cause(
        "learning-rate",
        None,
        (
            f"At its start the step has a loss of {loss:.4g}, and after weight changes within it, a loss that is not "
            f"finite: without a line search, the learning rate of {rate:g} alone sets how far LBFGS goes.",
        ),
        0.6,
        (
            'search for the length of each step: `torch.optim.LBFGS(..., line_search_fn="strong_wolfe")`',
            *remedies.lower_rate(evidence, 0.1),
        ),
    )
