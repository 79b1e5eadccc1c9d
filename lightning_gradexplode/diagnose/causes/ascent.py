"""Gradients of a wrong sign, which make the steps of a run raise its loss."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.diagnose import remedies
from lightning_gradexplode.diagnose.causes.descent import (
    gradient_is_reversed,
    reversed_parameters,
    reversing_function,
    slope_ratio,
)
from lightning_gradexplode.diagnose.causes.own_targets import INPUTS_ALIKE, targets_stay
from lightning_gradexplode.diagnose.faults.operations import size_of as largest_of
from lightning_gradexplode.diagnose.trends import SHORT_STEP, first_order_changes, trend
from lightning_gradexplode.records import Cause, Evidence, OwnFunction


def ascent(evidence: Evidence) -> Cause | None:
    """Return the cause if gradients have a wrong sign: that of a function, or as the slope of the loss shows."""
    if not trend(evidence).has_diverged:
        return None
    if (evidence.loss_factor or 0.0) < 0 and trend(evidence).has_risen:
        return Cause(
            "loss-without-floor",
            None,
            (
                f"The loop multiplies the loss by {evidence.loss_factor:.3g} for its backward pass, so that each step "
                "raises it.",
            ),
            0.9,
            ("minimize the loss, `loss.backward()`; of what is to be raised, bound it: `value.clamp(max=limit)`",),
        )
    reversing = reversing_function(evidence)
    if reversing is not None:
        return _reversed(evidence, reversing)
    wrong = reversed_parameters(evidence)
    if gradient_is_reversed(evidence):
        where: str | None = None
        sentence = (
            "Along the negative gradient the loss rises, however short the step is, by as much as it should fall: the "
            f"slope is {slope_ratio(evidence):.3g} times the one that the gradient predicts."
        )
    elif wrong:
        where = next((one.name for one in reversed(evidence.run.parameters) if one.name in wrong), wrong[0])
        sentence = (
            f"Along the negative gradients of {_listed(wrong)} the loss rises, however short the step is, by as much "
            "as it should fall; the other gradients have the right sign."
        )
    else:
        return _uphill(evidence)
    return Cause(
        "loss-without-floor",
        where,
        (sentence, "No learning rate helps against a wrong sign."),
        0.9,
        (
            "look for a wrong sign in what changes the gradient: a hook, the backward pass of an `autograd.Function`, "
            "a layer that reverses gradients; `torch.autograd.gradcheck` compares such a function with its derivative",
        ),
    )


def _uphill(evidence: Evidence) -> Cause | None:
    """Return the cause if the loss has risen on targets that stay, in steps that were too short to overshoot."""
    target, changes = targets_stay(evidence), first_order_changes(evidence)
    is_other = evidence.moves_weights or (evidence.input_growth or 0.0) > INPUTS_ALIKE
    if target is None or changes is None or changes[1] >= SHORT_STEP or is_other:
        return None
    return Cause(
        "loss-without-floor",
        None,
        (
            "The loss rises from step to step, and no update can have changed that of its own batch by more than "
            f"{changes[1]:.2g} of it: the steps do not overshoot.",
            f"The targets have the size of those at the start, at most {largest_of(target):.3g}, and the outputs have "
            "grown: the steps go up the slope of the loss.",
        ),
        0.6,
        (
            "look for a wrong sign: the update has to subtract the gradient, `parameter -= lr * parameter.grad`, with "
            "`maximize=False` and a positive rate, and the loss has to fall as the outputs get better",
            "check the gradient of functions of your own with `torch.autograd.gradcheck`",
        ),
    )


def _reversed(evidence: Evidence, function: OwnFunction) -> Cause:
    """Return the cause for a function that changes no value and reverses the gradient."""
    factor = function.factor or 0.0
    first = f"`{function.name}` returns what it takes, and its backward pass multiplies the gradient by {factor:.3g}"
    if function.is_only_way:
        sentence = f"{first}; all of the loss depends on it, so that the layers before it raise the loss."
        advice = [f"return the gradient as it is in the backward pass of `{function.name}`"]
    else:
        sentence = (
            f"{first}: the layers before it raise a term of the loss, {-factor:.3g} times as fast as the others lower "
            "it."
        )
        advice = [
            f"multiply the gradient in `{function.name}` by a number from -1 to 0, which begins at 0 and falls over "
            "many steps",
            *remedies.clip(evidence),
        ]
    return Cause("loss-without-floor", f"`{function.name}`", (sentence,), 0.8, tuple(advice))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{one}`" for one in names[:3]) + (" and others" if len(names) > 3 else "")
