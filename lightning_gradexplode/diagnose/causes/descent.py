"""Whether the gradients of a run are those of its loss, by the slope of the loss along them or by the loop's steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_gradexplode.diagnose.causes.optimization import exceeds_usual
from lightning_gradexplode.diagnose.causes.update_sizes import first_excess
from lightning_gradexplode.diagnose.curves import curve
from lightning_gradexplode.diagnose.optimizers import uses_adaptive_optimizer
from lightning_gradexplode.diagnose.trends import initial_weight_norm
from lightning_gradexplode.records import Evidence, LossTerm, OwnFunction

TOLERANCE, PARAMETER_TOLERANCE = 0.01, 0.03
"""Relative errors of the slope along all gradients, and along that of one parameter, a small part of them."""

MIN_FACTOR = 3.0
"""Least factor of gradients that something has multiplied."""

MIN_CHANGE = 0.02
"""Share of the weights' norm from which a change of it is not the rounding of the two norms."""

MIN_FACTOR_UNKNOWN_TARGETS = 10.0
"""Factor from which this holds also if the targets are not known: they would have to be the outputs themselves times
0.9 to 1.1."""


@dataclass(frozen=True, slots=True)
class MultipliedGradients:
    """Gradients that are a multiple of those of the loss.

    Args:
        factor: The multiple.
        parameters: Their parameters, in the order of their norms; empty for all.
        sentence: A description with possible causes.
        remedy: What to look for.
    """

    factor: float
    parameters: tuple[str, ...]
    sentence: str
    remedy: str


def slope_ratio(evidence: Evidence) -> float | None:
    """Return the slope of the loss along its gradient, divided by the slope that the gradient predicts.

    It is one, unless something in the loss changes with the weights that the gradient does not include, or something
    changes the gradient on its way to the weights.
    """
    return None if evidence.experiments is None else evidence.experiments.slope_ratio


def gradient_is_reversed(evidence: Evidence) -> bool:
    """Return whether the loss falls along its gradient by as much as it should rise: the gradient has a wrong sign."""
    ratio = slope_ratio(evidence)
    return ratio is not None and math.isclose(ratio, -1, rel_tol=TOLERANCE)


def reversed_parameters(evidence: Evidence) -> tuple[str, ...]:
    """Return the parameters whose gradients have a wrong sign, while those of all others are right.

    Returns:
        None of them if some gradients are wrong otherwise, as those of a loss whose targets move.
    """
    ratios = dict(evidence.experiments.slope_ratios) if evidence.experiments is not None else {}
    if not all(math.isclose(abs(ratio), 1, rel_tol=PARAMETER_TOLERANCE) for ratio in ratios.values()):
        return ()
    return tuple(name for name, ratio in ratios.items() if ratio < 0)


def multiplied_gradients(evidence: Evidence) -> MultipliedGradients | None:
    """Return by what factor gradients are larger than those of the loss, None if they are not, or not by one factor."""
    rules = (_by_a_function, _by_the_loop, _before_the_step, _by_slopes)
    return next((found for rule in rules if (found := rule(evidence)) is not None), None)


def reversing_function(evidence: Evidence) -> OwnFunction | None:
    """Return a function that changes no value and multiplies the gradient by a negative number, None without one.

    Such a function makes what it takes maximize a term of the loss, as adversaries do, unless all of the loss depends
    on it: then it is a wrong sign. With a factor of about -1 adversaries are usual.
    """
    is_all = len(evidence.run.optimizers) == 1 and _passes(evidence) <= 1  # else another loss may be lowered
    wrong = [
        one
        for one in evidence.own_functions
        if one.factor is not None and one.factor < 0 and ((is_all and one.is_only_way) or one.factor <= -MIN_FACTOR)
    ]
    return min(wrong, key=lambda one: one.factor or 0.0, default=None)


def _by_a_function(evidence: Evidence) -> MultipliedGradients | None:
    """Return the factor of a function that changes no value and multiplies the gradient on its way."""
    known = [one for one in evidence.own_functions if one.factor is not None and one.factor >= MIN_FACTOR]
    if not known or uses_adaptive_optimizer(evidence.run):
        return None
    largest = max(known, key=lambda one: one.factor or 0.0)
    factor = largest.factor or 1.0
    return MultipliedGradients(
        factor,
        (),
        f"`{largest.name}` returns what it takes, and its backward pass multiplies the gradient by {factor:.3g}: all "
        "layers before it take steps that are longer by that.",
        f"return the gradient as it is in the backward pass of `{largest.name}`, or lower the learning rate of the "
        f"layers before it by a factor of {factor:.3g}",
    )


def _by_the_loop(evidence: Evidence) -> MultipliedGradients | None:
    """Return by what factor the first step's gradients are larger than those of the loss that the loop has passed.

    Not for an optimizer that divides by the size of the gradient, where a constant factor cancels out, and not for a
    rate that is too high by itself.
    """
    factor, change = evidence.loss_factor or 1.0, math.prod(evidence.first_changes)
    total, run = factor * change, evidence.run
    if not MIN_FACTOR <= abs(total) < math.inf or len(run.optimizers) != 1 or len(evidence.first_changes) > 1:
        return None
    if uses_adaptive_optimizer(run) or exceeds_usual(evidence):
        return None
    sentence = (
        f"The gradients of the first step have a norm {abs(total):.3g} times that of the gradients of the loss: the "
    )
    if change >= MIN_FACTOR:
        return MultipliedGradients(
            total,
            (),
            f"{sentence}loop replaces, adds to or multiplies them between the backward pass of the loss and the "
            "optimizer's step.",
            "look at what is done to the gradients between `loss.backward()` and `optimizer.step()`: a factor, noise "
            "that is added, a further backward pass, such as at perturbed weights; shorten it until the first step is "
            "as small as without it",
        )
    return MultipliedGradients(
        total,
        (),
        f"{sentence}loop multiplies the loss by {factor:.3g} for its backward pass, and each step is in proportion to "
        "it.",
        f"leave the factor out, `loss.backward()`, or divide the gradients by {factor:.3g} before the optimizer's step",
    )


def _before_the_step(evidence: Evidence) -> MultipliedGradients | None:
    """Return the least factor by which the first update is longer than gradient descent makes it, without a state."""
    found, weights = first_excess(evidence), initial_weight_norm(evidence) or 0.0
    if found is None or found[0].kind != "SGD" or found[0].has_state or evidence.run.processes > 1:
        return None
    one, update, bound = found
    if update < MIN_CHANGE * weights:
        return None
    return MultipliedGradients(
        update / bound,
        (),
        f"The first update has a norm of at least {update:.3g}; of the gradient that was measured, {one.kind} makes "
        f"{bound:.3g} at this learning rate. Something changes the gradients between the measurement and the "
        "optimizer's step, or writes to the weights.",
        "look at what changes gradients or weights before the optimizer's step, such as a hook: a factor, a decay with "
        "a wrong sign, added noise",
    )


def _by_slopes(evidence: Evidence) -> MultipliedGradients | None:
    """Return by what factor gradients are larger than the slopes of the loss along them, if they differ by one factor.

    Targets that move with the weights change the slope as well, but of different parameters differently, unless they
    are the outputs themselves.
    """
    ratios = evidence.experiments.slope_ratios if evidence.experiments is not None else ()
    others = {name: ratio for name, ratio in ratios if not math.isclose(ratio, 1, rel_tol=PARAMETER_TOLERANCE)}
    sizes = [abs(ratio) for ratio in others.values()] or [0.0]
    is_one_factor = min(sizes) > 0 and max(sizes) <= (1 + PARAMETER_TOLERANCE) * min(sizes)
    if not is_one_factor or len({ratio > 0 for ratio in others.values()}) > 1 or _passes(evidence) > 1:
        return None
    right = {name.rpartition(".")[0] for name, _ in ratios if name not in others}
    if len(others) == 1 and not right.issuperset(name.rpartition(".")[0] for name in others):
        return None  # no other parameter of its module shows that the targets do not move
    factor = math.copysign(1 / math.sqrt(min(sizes) * max(sizes)), min(others.values()))
    terms = evidence.replay.losses if evidence.replay is not None else ()
    are_data = [_takes_data(evidence, term) for term in terms if len(term.inputs) > 1]
    if not all(are_data):
        return None  # the targets may be computed from the outputs
    is_sure = bool(are_data) or _is_larger_than_computed_again(evidence, abs(factor))
    if abs(factor) < (MIN_FACTOR if is_sure else MIN_FACTOR_UNKNOWN_TARGETS):
        return None
    parameters = tuple(others) if right else ()
    names = ", ".join(f"`{name}`" for name in parameters[:3])
    of = f" of {names}" + (" and others" if len(parameters) > 3 else "") if names else ""
    return MultipliedGradients(
        factor,
        parameters,
        f"The gradients{of} are {factor:.3g} times those of the loss, by its slope along them: something multiplies "
        "them between the loss and the optimizer's step, such as a hook, a custom `autograd.Function`, or a factor of "
        "the loss in the backward pass only.",
        "look for what multiplies the gradients: `register_hook`, `on_after_backward`, a custom `autograd.Function` "
        "(`torch.autograd.gradcheck` tests it), or a loss that is scaled for its backward pass",
    )


def _passes(evidence: Evidence) -> float:
    """Return the number of backward passes that a step is made of."""
    return max(curve(evidence, name).last or 1.0 for name in ("micro_batches", "backward_passes"))


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
    return math.isclose(found.memory_grad_norm, factor * found.batch_grad_norm, rel_tol=PARAMETER_TOLERANCE)
