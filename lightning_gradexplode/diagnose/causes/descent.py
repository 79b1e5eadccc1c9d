"""Whether the gradients of a run are those of its loss, by the slope of the loss along them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradexplode.diagnose.curves import curve
from lightning_gradexplode.records import Evidence, LossTerm

PRECISE, PRECISE_OF_ONE = 0.01, 0.03
"""Relative errors of the slope along all gradients, and along that of one parameter, a small part of them."""

MULTIPLIED = 3.0
"""Least factor of gradients that something has multiplied."""

FAR = 10.0
"""Factor from which this holds also if the targets are not known: they would have to be the outputs themselves times
0.9 to 1.1."""


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
            f"The gradients{of} are {self.factor:.3g} times those of the loss, by its slope along them: something "
            "multiplies them between the loss and the optimizer's step, such as a hook, a custom `autograd.Function`, "
            "or a factor of the loss in the backward pass only."
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
    others = {name: share for name, share in shares if not math.isclose(share, 1, rel_tol=PRECISE_OF_ONE)}
    sizes = [abs(share) for share in others.values()] or [0.0]
    passes = max(curve(evidence, name).last or 1.0 for name in ("micro_batches", "backward_passes"))
    is_one_factor = min(sizes) > 0 and max(sizes) <= (1 + PRECISE_OF_ONE) * min(sizes)
    if not is_one_factor or len({share > 0 for share in others.values()}) > 1 or passes > 1:
        return None
    right = {name.rpartition(".")[0] for name, _ in shares if name not in others}
    if len(others) == 1 and not right.issuperset(name.rpartition(".")[0] for name in others):
        return None  # no other parameter of its module shows that the targets do not move
    factor = math.copysign(1 / math.sqrt(min(sizes) * max(sizes)), min(others.values()))
    terms = evidence.replay.losses if evidence.replay is not None else ()
    are_data = [_takes_data(evidence, term) for term in terms if len(term.inputs) > 1]
    if not all(are_data):
        return None  # the targets may be computed from the outputs
    is_sure = bool(are_data) or _is_larger_than_computed_again(evidence, abs(factor))
    if abs(factor) < (MULTIPLIED if is_sure else FAR):
        return None
    return MultipliedGradients(factor, tuple(others) if right else ())


def _takes_data(evidence: Evidence, term: LossTerm) -> bool:
    """Return whether the targets of a loss are in the usual range of a field of the batch, which outputs leave."""
    taken = term.inputs[1]
    for field in evidence.batch.fields if evidence.batch is not None else ():
        least, greatest = field.usual_least, field.usual_greatest
        if None in (least, greatest, taken.least, taken.greatest) or math.prod(field.shape) != math.prod(taken.shape):
            continue
        width = (greatest or 0.0) - (least or 0.0)
        if (least or 0.0) - width <= (taken.least or 0.0) <= (taken.greatest or 0.0) <= (greatest or 0.0) + width:
            return True
    return False


def _is_larger_than_computed_again(evidence: Evidence, factor: float) -> bool:
    """Return whether the gradient of the batch, computed again, is smaller by a factor, whatever the targets are."""
    found = evidence.experiments
    if found is None or not found.memory_grad_norm or not found.batch_grad_norm:
        return False
    return math.isclose(found.memory_grad_norm, factor * found.batch_grad_norm, rel_tol=PRECISE_OF_ONE)
