"""Whether the gradients of a run are those of its loss, by the slope of the loss along them."""

from __future__ import annotations

import math

from lightning_gradexplode.records import Evidence

PRECISE, PRECISE_OF_ONE = 0.01, 0.03
"""Relative errors of the slope along all gradients, and along that of one parameter, a small part of them."""


def share_of_descent(evidence: Evidence) -> float | None:
    """Return the slope of the loss along its gradient, divided by the slope that the gradient predicts.

    It is one, unless something in the loss changes with the weights that the gradient does not include, or something
    changes the gradient on its way to the weights.
    """
    return None if evidence.experiments is None else evidence.experiments.slope_share


def is_ascent(evidence: Evidence) -> bool:
    """Return whether the loss falls along its gradient by as much as it should rise: the gradient has a wrong sign."""
    share = share_of_descent(evidence)
    return share is not None and math.isclose(share, -1, rel_tol=PRECISE)


def with_wrong_sign(evidence: Evidence) -> tuple[str, ...]:
    """Return the parameters whose gradients have a wrong sign, while those of all others are right.

    Returns:
        None of them if some gradients are wrong otherwise, as those of a loss whose targets move.
    """
    shares = dict(evidence.experiments.slope_shares) if evidence.experiments is not None else {}
    if not all(math.isclose(abs(share), 1, rel_tol=PRECISE_OF_ONE) for share in shares.values()):
        return ()
    return tuple(name for name, share in shares.items() if share < 0)
