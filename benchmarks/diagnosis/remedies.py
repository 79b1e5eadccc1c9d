"""Applying a remedy mechanically: from the words of its sentence to a change of the run."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

from pytorch_lightning import Callback
from torch.optim import Optimizer

from benchmarks.diagnosis.case import NUMBER, Case
from benchmarks.diagnosis.runs import Ending, prepare, train_monitored
from lightning_gradexplode import RecurrentBound

CURES: Mapping[str, str] = MappingProxyType(
    {
        "nonfinite-input": r"remove|\bdrop\b|filter|exclude|impute|\bfill|nan_to_num|\bmask|clean|\beps\b",
        "nonfinite-target": r"remove|\bdrop\b|filter|exclude|impute|\bfill|nan_to_num|\bmask|clean",
        "target-out-of-range": r"divide|rescale|\bmap\b|relabel|range|clamp|filter|remove|\bdrop\b|between 0 and 1",
        "empty-reduction": r"clamp|drop_last|max\(|at least|guard|unbiased=False|correction=0|\bskip the",
        "unscaled-data": r"standardi[sz]e|normali[sz]e|rescale|subtract",
        "outlier-batch": r"remove|\bdrop\b|filter|exclude|limit such|clip the (?:inputs|targets|values|data)",
        "undefined-operation": r"clamp|\beps\b|guard|\bmask|nan_to_num|away from|keep the (?:argument|base)",
        "forward-overflow": r"logsumexp|log_softmax|softplus|tanh|subtract|log1p|normali[sz]e|stable",
        "half-precision": r"float32|32-true|bfloat16|bf16|GradScaler|mixed",
        "learning-rate-jump": r"restart|schedule|\bcap\b|\bpeak|gamma|warm",
        "optimizer-state": r"\bstate\b|\beps\b|\bbetas?\b|momentum",
        "accumulated-gradients": r"zero_grad|divide|average|\bmean\b",
        "initialization": r"initiali[sz]|\bgain\b|\bstd\b|fan[-_ ]in|kaiming|xavier",
        "depth": r"normali[sz]|LayerNorm|BatchNorm|residual|shortcut|fewer layers",
        "recurrence": r"shorter|truncat",
        "loss-without-floor": r"\bbound|clamp|penalty|\bfloor|spectral|maximize|minimum",
        "moving-target": r"target network|freeze|frozen",
    }
)
"""By kind, the words of a remedy that amount to the cure of a case of that kind."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """A change of a run.

    Args:
        settings: Settings of the case.
        monitor: Arguments of the monitor.
        groups: Hyperparameters of all parameter groups.
        learning_rate: The largest learning rate of the optimizers as they are created, None for the case's own.
        rate_factor: Factor of the learning rate.
        rate_cap: No learning rate rises above.
        warm_up: Number of steps over which the learning rate rises, from a hundredth.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    monitor: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    rate_factor: float = 1.0
    rate_cap: float = math.inf
    warm_up: int = 0


def _literal(found: re.Match[str]) -> Treatment:
    return Treatment(monitor={"on_explosion": ast.literal_eval(found[1])})


def _recurrent_bound(found: re.Match[str]) -> Treatment:
    call = cast(ast.Call, ast.parse(found[1], mode="eval").body)
    arguments = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    return Treatment(monitor={"on_explosion": RecurrentBound(**arguments)})


def _group(name: str) -> Callable[[re.Match[str]], Treatment]:
    return lambda found: Treatment(groups={name: float(found[1])})


GENERAL: tuple[tuple[str, Callable[[re.Match[str]], Treatment]], ...] = (
    (r"(RecurrentBound\([^)]*\))", _recurrent_bound),
    (r'on_explosion=("[a-z_]+"|\[[a-z_", ]+\])', _literal),
    (r'"skip"', lambda found: Treatment(monitor={"on_explosion": "skip"})),
    (r'clip="auto"', lambda found: Treatment(monitor={"clip": "auto"})),
    (rf"\b(?:clip|gradient_clip_val)={NUMBER}", lambda found: Treatment(monitor={"clip": float(found[1])})),
    (rf"\blr={NUMBER}", lambda found: Treatment(learning_rate=float(found[1]))),
    (rf"learning rate to {NUMBER} of what", lambda found: Treatment(rate_factor=float(found[1]))),
    (rf"learning rate near {NUMBER}", lambda found: Treatment(rate_cap=float(found[1]))),
    (rf"LinearLR\(.*total_iters={NUMBER}", lambda found: Treatment(warm_up=int(found[1]))),
    (
        rf"learning rate\b[^.;]*?\b(?:to|of|below|at most|about) {NUMBER}(?! of what)",
        lambda found: Treatment(learning_rate=float(found[1])),
    ),
    (rf"weight_decay={NUMBER}", _group("weight_decay")),
    (rf"\beps={NUMBER}", _group("eps")),
    (rf"\bmomentum={NUMBER}", _group("momentum")),
    (
        rf"betas=\({NUMBER}, {NUMBER}\)",
        lambda found: Treatment(groups={"betas": (float(found[1]), float(found[2]))}),
    ),
    (r"maximize=False", lambda found: Treatment(groups={"maximize": False})),
)
"""Remedies with the same meaning for all cases; a number in them is used as it is."""


def treatment_for(case: type[Case], remedy: str, is_right: bool = True) -> Treatment | None:
    """Return the first change that a remedy describes, None if none of its words is known.

    Args:
        case: The case.
        remedy: The sentence.
        is_right: Whether it is of a cause of the right kind. Words of another kind's remedy may match those of the
            cure by chance: then only `other_cures` of the case count, and what means the same for every case.
    """
    own = "|".join(filter(None, [case.cured_by, *(CURES[kind] for kind in case.kinds if kind in CURES)]))
    candidates: list[tuple[int, int, Treatment]] = []
    for pattern, changes in case.other_cures.items():
        if found := re.search(pattern, remedy, re.IGNORECASE):
            values = {name: float(found[1]) if value is float else value for name, value in changes.items()}
            candidates.append((found.start(), 0, Treatment(settings=values)))
    for pattern, make in GENERAL:
        if found := re.search(pattern, remedy):
            candidates.append((found.start(), 1, make(found)))
    if is_right and own and (found := re.search(own, remedy, re.IGNORECASE)):
        candidates.append((found.start(), 2, Treatment(settings=case.cure)))
    return min(candidates, key=lambda one: one[:2])[2] if candidates else None


def treat(case: type[Case], treatment: Treatment) -> Ending:
    """Train a case again, with a change."""
    module = prepare(case, dict(treatment.settings))
    factor = treatment.rate_factor
    if treatment.learning_rate is not None:
        optimizers = optimizers_in(module.configure_optimizers())
        rates = [group.get("initial_lr", group["lr"]) for one in optimizers for group in one.param_groups]
        factor *= treatment.learning_rate / max(rates)
    if factor != 1.0:
        module = prepare(case, {**treatment.settings, "lr": module.lr * factor})
    callbacks: list[Callback] = [_Groups(treatment.groups)] if treatment.groups else []
    callbacks += [_RateCap(treatment.rate_cap)] if math.isfinite(treatment.rate_cap) else []
    callbacks += [_WarmUp(treatment.warm_up)] if treatment.warm_up else []
    return train_monitored(module, callbacks, **treatment.monitor)[0]


def optimizers_in(made: Any) -> list[Optimizer]:
    """Return the optimizers of what ``configure_optimizers`` returned, in any of the forms that Lightning takes."""
    if isinstance(made, Mapping):
        return optimizers_in(made["optimizer"])
    if not isinstance(made, (list, tuple)):
        return [] if made is None else [made]
    has_schedulers = len(made) == 2 and all(isinstance(one, (list, tuple)) for one in made)
    return [one for part in (made[:1] if has_schedulers else made) for one in optimizers_in(part)]


class _Groups(Callback):
    """Sets hyperparameters of all parameter groups that have them, before the first batch."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Set them."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update({name: value for name, value in self._values.items() if name in group})


class _RateCap(Callback):
    """Keeps the learning rates of all groups from rising above a value, whatever a schedule sets."""

    def __init__(self, most: float) -> None:
        self._most = most

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Lower the rates that are above it."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = min(group["lr"], self._most)


class _WarmUp(Callback):
    """Raises the learning rate from a hundredth over the first steps."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._rates: list[list[float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the rate."""
        if not self._rates:
            self._rates = [[group["lr"] for group in one.param_groups] for one in trainer.optimizers]
        factor = min(1.0, 0.01 + 0.99 * trainer.global_step / self._steps)
        if trainer.global_step <= self._steps:
            for optimizer, rates in zip(trainer.optimizers, self._rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
