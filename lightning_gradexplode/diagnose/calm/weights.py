"""Weights with which a run without an incident learns nothing: too large, or without a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lightning_gradexplode.diagnose.causes.initialization import large_weights, scale_without_logarithm
from lightning_gradexplode.diagnose.curves import last_level, loss_curve, signs
from lightning_gradexplode.diagnose.faults.operations import STEPS
from lightning_gradexplode.diagnose.layers import (
    code_of_parameter,
    gain_of,
    keeping_std,
    layers,
    normalized_share,
    untrained_loss,
)
from lightning_gradexplode.diagnose.learning import ENOUGH, LEARNED, learned
from lightning_gradexplode.records import Cause, Evidence, History

SMALL_GAIN, LAYERS = 0.1, 3
"""Factor that all layers scale their inputs by, below which the signal vanishes over at least this number of layers;
0.58 is torch's default."""

STUCK = 0.9
"""Share of the loss of a guess above which nothing was learned."""


def scale_too_large(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if a logarithm of a scale starts as the scale itself."""
    cause = scale_without_logarithm(evidence)
    if cause is not None:
        yield cause


def weights_too_large(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if weights increase the scale of their inputs, and the loss has hardly decreased.

    Frozen weights are those of a trained model, for which their scale is right.
    """
    cause = large_weights(evidence) if learned(evidence) > LEARNED else None
    if cause is not None and cause.where not in evidence.frozen:
        yield cause


def weights_too_small(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if each layer makes its inputs far smaller, and the loss stays at that of a guess.

    Signal and gradient shrink by the product of these factors. A layer that normalizes restores the scale.
    """
    loss, guess = loss_curve(evidence).finite.value, untrained_loss(evidence)
    weights = [one for one in layers(evidence.run) if one.name not in evidence.frozen]
    if len(loss) < 2 * ENOUGH or guess is None or len(weights) < LAYERS or normalized_share(evidence.run) > 0:
        return
    largest, first = max(map(gain_of, weights)), weights[0]
    if not 0 < largest < SMALL_GAIN or last_level(loss) < STUCK * guess:
        return
    names = " and ".join(f"`nn.init.kaiming_normal_({code_of_parameter(one)})`" for one in weights[:2])
    yield Cause(
        "initialization",
        first.name,
        (
            f"Each of the {len(weights)} layers multiplies the scale of its inputs by at most {largest:.2g}, so that "
            f"signal and gradient vanish on their way: `{first.name}` starts with a root mean square of "
            f"{first.std:.3g}, and {keeping_std(first):.3g} would keep that scale.",
            f"The loss is {last_level(loss):.4g} after {len(loss)} steps; that of a guess is {guess:.4g}.",
        ),
        0.75,
        (f"start all layers on the usual scale: {names}{' and so on' if len(weights) > 2 else ''}",),
    )


def weights_without_gradient(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if most gradients have always been zero, and weights or biases explain it."""
    is_seen = "zero-gradient" in signs(evidence)
    still = {name for history in evidence.history for name in _without_gradient(history, 10 if is_seen else ENOUGH)}
    count = sum(len(history.parameters) for history in evidence.history)
    if (learned(evidence) <= LEARNED and not is_seen) or not 2 * len(still) >= count > len(still):
        return
    sentence = f"The gradients of {len(still)} of {count} parameters have been exactly zero at every step."
    zero = [one for one in layers(evidence.run) if one.std == 0 and one.name in still]
    if len(zero) > 1:
        yield Cause(
            "initialization",
            zero[0].name,
            (f"`{zero[0].name}` and {len(zero) - 1} more weights start at exactly zero.", sentence),
            0.9,
            ("start them at random instead of zero: `nn.init.kaiming_normal_(layer.weight)`",),
        )
    biases = [one for one in evidence.run.parameters if one.name.endswith("bias") and one.name in still]
    worst = max(biases, key=lambda one: one.std if math.isfinite(one.std) else 0.0, default=None)
    if worst is not None and worst.std >= 10:
        yield Cause(
            "initialization",
            worst.name,
            (
                f"`{worst.name}` starts with a root mean square of {worst.std:.3g}: its units are never active.",
                sentence,
            ),
            0.85,
            ("start its biases at zero: `nn.init.zeros_(layer.bias)`",),
        )


def operation_without_slope(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if no parameter ever had a gradient, and an operation passed none on at the first step."""
    count = _parameters_without_gradient(evidence)
    if evidence.inactive is None or not count:
        return
    operation, parameter = evidence.inactive
    layer = parameter.rpartition(".")[0]
    sentence, advice = _of_slope(operation, layer or "layer")
    yield Cause(
        "undefined-operation" if operation in STEPS else "initialization",
        _place(operation, layer),
        (sentence, f"The gradients of all {count} parameters have been exactly zero at every step."),
        0.85,
        advice,
    )


def _of_slope(operation: str, layer: str) -> tuple[str, tuple[str, ...]]:
    """Return why an operation after a layer passes no gradient on, and what does."""
    if operation == "relu":
        return (
            "The result of `relu` is zero for all elements of the first batch: what it takes is below zero.",
            (
                "use a function that passes a gradient for all inputs in place of it: `F.softplus(x)` or "
                "`F.leaky_relu(x)`",
                f"or start with a bias above zero: `nn.init.constant_({layer}.bias, 0.1)`",
            ),
        )
    if operation in STEPS:
        return (
            f"The derivative of `{operation}` is zero everywhere.",
            (f"pass the gradient straight through: `x + (x.{operation}() - x).detach()`",),
        )
    return (
        f"What `{operation}` takes is beyond its limits for all elements of the first batch, where its derivative is "
        "zero.",
        (
            "put a leaky limit in its place, `y = x.clamp(0, 1)` and then `y + 0.01 * (x - y)`, or `torch.sigmoid(x)`",
            f"or start with a smaller `{layer}.weight`, so that it takes values within its limits",
        ),
    )


def softmax_of_one_element(evidence: Evidence) -> Iterator[Cause]:
    """Yield the cause if no parameter ever had a gradient, and the loss takes a softmax over one element."""
    count = _parameters_without_gradient(evidence)
    if evidence.of_one_element is None or not count:
        return
    operation, parameter = evidence.of_one_element
    layer, result = parameter.rpartition(".")[0], "zero" if operation == "log_softmax" else "one"
    yield Cause(
        "empty-reduction",
        _place(operation, layer),
        (
            f"`{operation}` is taken over a dimension of one element: its result is {result} for all inputs, and its "
            "gradient is zero.",
            f"The gradients of all {count} parameters have been exactly zero at every step.",
        ),
        0.85,
        (
            "for a single output use `F.binary_cross_entropy_with_logits(output, target)` without a softmax, or return "
            "one output for each class",
            "or take the softmax over the dimension of the classes: `x.softmax(dim=1)` of a tensor of shape "
            "`(batch, classes)`",
        ),
    )


def _place(operation: str, layer: str) -> str:
    """Return an operation as a place, with the layer before it if that has a name."""
    return f"`{operation}`" + (f" after {'layer ' if layer.isdecimal() else ''}{layer}" if layer else "")


def _parameters_without_gradient(evidence: Evidence) -> int:
    """Return the number of all parameters if none of them ever had a gradient, else zero."""
    still = {name for history in evidence.history for name in _without_gradient(history, 10)}
    count = sum(len(history.parameters) for history in evidence.history)
    return count if len(still) >= count else 0


def _without_gradient(history: History, least: int) -> list[str]:
    """Return the parameters whose gradient was zero at each step; none if fewer than `least` steps are known."""
    norms = history.parameter_grad_norm
    if norms.ndim != 2 or len(norms) < least:
        return []
    return [name for name, column in zip(history.parameters, norms.T, strict=True) if not np.any(column)]
