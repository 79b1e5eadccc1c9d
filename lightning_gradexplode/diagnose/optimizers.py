"""Properties of an optimizer from its class and hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_gradexplode.records import OptimizerFacts, RunFacts

USUAL_RATES = {"adam": 0.01, "rmsprop": 0.01, "lion": 0.001, "adagrad": 0.1, "sgd": 0.5}
"""Learning rates above which most networks fail with an optimizer."""

NORMALIZING = ("adam", "rmsprop", "adagrad", "adadelta", "lion")
"""Parts of the names of optimizers that divide by a running average of gradient sizes."""

ADADELTA_RATE = 1.0
"""The rate with which Adadelta was published, as a method without a learning rate (Zeiler, 2012)."""

UNIT_STEPS = ("Adam", "AdamW", "Adamax", "Adagrad", "Lion")
"""Optimizers whose first update moves each weight by the learning rate."""

_OF_TORCH = frozenset(
    {"ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam",
     "RMSprop", "Rprop", "SGD", "SparseAdam"}
)  # fmt: skip


def is_of_torch(optimizer: OptimizerFacts) -> bool:
    """Return whether an optimizer has the name of one of torch."""
    return optimizer.kind in _OF_TORCH


def keeps_state(optimizer: OptimizerFacts) -> bool:
    """Return whether an optimizer's updates depend on earlier gradients."""
    momenta = [group.get("momentum", 0.0) for group in optimizer.groups]
    return optimizer.kind != "SGD" or any(isinstance(one, (int, float)) and one > 0 for one in momenta)


def is_plain_descent(run: RunFacts) -> bool:
    """Return whether every optimizer is gradient descent without momentum, whose updates follow the gradient."""
    return bool(run.optimizers) and all(
        one.kind == "SGD" and not any(group.get("momentum") or group.get("maximize") for group in one.groups)
        for one in run.optimizers
    )


def uses_adaptive_optimizer(run: RunFacts) -> bool:
    """Return whether an optimizer divides by a running average of gradient sizes, so that their scale cancels out."""
    return any(map(_normalizes, run.optimizers))


def is_wrapped(optimizer: OptimizerFacts) -> bool:
    """Return whether an optimizer wraps another one, so that its updates are not those of the other."""
    return "(" in optimizer.kind


def numbers_of(group: Mapping[str, float | bool | str]) -> dict[str, float]:
    """Return the finite numbers among the hyperparameters of a parameter group."""
    return {
        name: float(value)
        for name, value in group.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def usual_rate(run: RunFacts) -> tuple[str, float] | None:
    """Return an optimizer and the rate above which most networks fail with it, None if that is not known.

    Of several optimizers, whose rates may differ, the one with the highest such rate; None if one is of no known kind.
    """
    known = [(one.kind, rate) for one in run.optimizers if (rate := _usual_rate_of(one.kind)) is not None]
    return max(known, key=lambda one: one[1]) if known and len(known) == len(run.optimizers) else None


def highest_normalized_rate(run: RunFacts) -> float:
    """Return the highest rate to propose for the optimizers of a run that normalize their steps.

    Returns:
        The lowest of those of several; infinity without such an optimizer.
    """
    kinds = [one.kind.lower() for one in run.optimizers if _normalizes(one)]
    rates = [ADADELTA_RATE if "adadelta" in one else _usual_rate_of(one) for one in kinds]
    return min((one for one in rates if one is not None), default=math.inf)


def _normalizes(optimizer: OptimizerFacts) -> bool:
    return any(word in optimizer.kind.lower() for word in NORMALIZING)


def _usual_rate_of(kind: str) -> float | None:
    return next((usual for name, usual in USUAL_RATES.items() if name in kind.lower()), None)
