"""How much an update of gradient descent lowers the loss, compared with what its gradient predicts."""

from __future__ import annotations

import math

from lightning_gradexplode.diagnose.line_search import LineSearch
from lightning_gradexplode.diagnose.optimizers import is_plain_descent
from lightning_gradexplode.diagnose.remedies import common as remedies
from lightning_gradexplode.records import Evidence


def is_ascent(share: float) -> bool:
    """Return whether the loss rises along the update by as much as it should fall: the gradient has a wrong sign."""
    return math.isclose(share, -1, rel_tol=0.1)


def share_of_descent(evidence: Evidence, search: LineSearch) -> float | None:
    """Return the decrease of the loss along the update to first order, divided by that of gradient descent.

    Gradient descent decreases it by the learning rate times the squared norm of the gradient.

    Returns:
        None if the update is not the gradient of the step times one learning rate, or if that is not known.
    """
    experiments, rate = evidence.experiments, remedies.learning_rate(evidence)
    norm = experiments.memory_grad_norm if experiments is not None else None
    groups = [group for one in evidence.run.optimizers for group in one.groups]
    if not is_plain_descent(evidence.run) or len({group.get("lr") for group in groups}) != 1:
        return None
    if evidence.run.clip_val is not None or any(group.get("weight_decay") for group in groups):
        return None
    if rate is None or norm is None or not 0 < norm < math.inf or not math.isfinite(search.slope):
        return None
    return -search.slope / (rate * norm**2)
