"""Whether the gradients of a run are those of its loss, by the slope of the loss along them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradexplode.diagnose.batch import is_of_batch
from lightning_gradexplode.diagnose.curves import curve
from lightning_gradexplode.records import Evidence

PRECISE, PRECISE_OF_ONE = 0.01, 0.03
"""Relative errors of the slope along all gradients, and along that of one parameter, a small part of them."""

MULTIPLIED = 3.0
"""Least factor of gradients that something has multiplied."""

FAR = 10.0
"""Factor from which this holds also if the targets may have been computed: such targets would have to change with the
outputs by nine tenths, all alike."""


@dataclass(frozen=True, slots=True)
class MultipliedGradients:
    """Gradients that are a multiple of those of the loss.

    Args:
        factor: The multiple.
        parameters: Their parameters, in the order of their norms; empty for all.
    """

    factor: float
    parameters: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """A description with possible causes."""
        names = ", ".join(f"`{name}`" for name in self.parameters[:3])
        of = f" of {names}" + (" and others" if len(self.parameters) > 3 else "") if names else ""
        return (
            f"The gradients{of} are {self.factor:.3g} times as large as the slope of the loss: something multiplies "
            "them between the loss and the optimizer's step, such as a hook, a custom `autograd.Function`, or a factor "
            "of the loss in the backward pass only."
        )


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


def multiplied_gradients(evidence: Evidence) -> MultipliedGradients | None:
    """Return by what factor gradients are larger than the slopes of the loss along them, if they differ by one factor.

    Targets that move with the weights change the slope as well, but of different parameters differently, unless they
    are the outputs themselves.
    """
    shares = evidence.experiments.slope_shares if evidence.experiments is not None else ()
    others = [(name, share) for name, share in shares if not math.isclose(share, 1, rel_tol=PRECISE_OF_ONE)]
    least, largest = min((share for _, share in others), default=0.0), max((share for _, share in others), default=0.0)
    passes = max(curve(evidence, name).last or 1.0 for name in ("micro_batches", "backward_passes"))
    if not 0 < least <= largest <= min(1 / MULTIPLIED, (1 + PRECISE_OF_ONE) * least) or passes > 1:
        return None
    names, factor = tuple(name for name, _ in others), 1 / math.sqrt(least * largest)
    right = {name.rpartition(".")[0] for name, _ in shares if name not in names}
    if len(names) == 1 and names[0].rpartition(".")[0] not in right:
        return None  # no other parameter of its module shows that the targets do not move
    terms = evidence.replay.losses if evidence.replay is not None else ()
    are_data = bool(terms) and all(len(term.inputs) < 2 or is_of_batch(evidence, term) for term in terms)
    if factor < FAR and not are_data:
        return None
    return MultipliedGradients(factor, names if right else ())
