"""Applying a remedy mechanically: from the words of its sentence to a change of the run."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pytorch_lightning import Callback
from torch.optim import Optimizer

from benchmarks.diagnosis.case import Case
from benchmarks.diagnosis.runs import Ending, prepare, train
from lightning_gradexplode import GradientExplosionMonitor, RecurrentBound

CURES: Mapping[str, str] = MappingProxyType(
    {
        "nonfinite-input": r"remove|\bdrop\b|filter|exclude|leave out|impute|\bfill|nan_to_num|\bmask|clean|\beps\b",
        "nonfinite-target": r"remove|\bdrop\b|filter|exclude|leave out|impute|\bfill|nan_to_num|\bmask|clean",
        "target-out-of-range": r"divide|scale|\bmap\b|relabel|range|clamp|filter|remove|between 0 and 1|\bfrom 0 to\b",
        "empty-reduction": r"clamp|drop_last|leave out|max\(|at least|guard|unbiased=False|correction=0|\bskip the",
        "unscaled-data": r"standardi[sz]e|normali[sz]e|scale|subtract",
        "outlier-batch": r"remove|\bdrop\b|filter|exclude|leave out|clip the (?:inputs|targets|values|data)",
        "undefined-operation": r"clamp|\beps\b|guard|\bmask|add a small|nan_to_num",
        "forward-overflow": r"clamp|logsumexp|log_softmax|softplus|tanh|\bbound|subtract|log1p|normali[sz]e|stable",
        "half-precision": r"float32|32-true|bfloat16|bf16|GradScaler|mixed|\beps=|\bscale",
        "learning-rate-jump": r"restart|schedule|\bcap\b|\bpeak|gamma|warm|keep the",
        "optimizer-state": r"\bstate\b|\beps\b|\bbetas?\b|momentum",
        "accumulated-gradients": r"zero_grad|divide|average|\bmean\b",
        "initialization": r"initiali[sz]|\bgain\b|\bstd\b|fan[-_ ]in|kaiming|xavier",
        "depth": r"normali[sz]|LayerNorm|BatchNorm|residual|shortcut|fewer layers",
        "recurrence": r"orthogonal|spectral|shorter|truncat|gated|LSTM|GRU",
        "loss-without-floor": r"\bsign\b|\bbound|clamp|penalty|\bfloor|spectral|maximize|minimum",
        "moving-target": r"target network|freeze|frozen|stop.?gradient|detach|\bslow",
    }
)
"""By kind, the words of a remedy that amount to the cure of a case of that kind."""

NUMBER = r"([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)"


@dataclass(frozen=True, slots=True)
class Treatment:
    """A change of a run.

    Args:
        settings: Settings of the case.
        monitor: Arguments of the monitor.
        groups: Hyperparameters of all parameter groups.
        learning_rate: The largest learning rate of the optimizers as they are created.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    monitor: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None


def _literal(found: re.Match[str]) -> Treatment:
    return Treatment(monitor={"on_explosion": ast.literal_eval(found[1])})


def _group(name: str) -> Callable[[re.Match[str]], Treatment]:
    return lambda found: Treatment(groups={name: float(found[1])})


GENERAL: tuple[tuple[str, Callable[[re.Match[str]], Treatment]], ...] = (
    (r"RecurrentBound", lambda found: Treatment(monitor={"on_explosion": RecurrentBound()})),
    (r'on_explosion=("[a-z_]+"|\[[a-z_", ]+\])', _literal),
    (r'"skip"', lambda found: Treatment(monitor={"on_explosion": "skip"})),
    (r'clip="auto"', lambda found: Treatment(monitor={"clip": "auto"})),
    (rf"\b(?:clip|gradient_clip_val)={NUMBER}", lambda found: Treatment(monitor={"clip": float(found[1])})),
    (rf"\blr={NUMBER}", lambda found: Treatment(learning_rate=float(found[1]))),
    (
        rf"learning rate\b[^.;]*?\b(?:to|of|near|below|at most|about) {NUMBER}",
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
"""Remedies that mean the same for every case; a number in them is used as it stands."""


def treatment_for(case: type[Case], remedy: str) -> Treatment | None:
    """Return the change that a remedy asks for first, None if none of its words is known.

    Args:
        case: The case.
        remedy: The sentence.
    """
    own = "|".join(filter(None, [case.cured_by, *(CURES[kind] for kind in case.kinds if kind in CURES)]))
    candidates: list[tuple[int, int, Treatment]] = []
    for pattern, changes in [*case.other_cures.items(), *([(own, case.cure)] if own else [])]:
        if found := re.search(pattern, remedy, re.IGNORECASE):
            candidates.append((found.start(), 1, Treatment(settings=changes)))
    for pattern, make in GENERAL:
        if found := re.search(pattern, remedy):
            candidates.append((found.start(), 0, make(found)))
    return min(candidates, key=lambda one: one[:2])[2] if candidates else None


def treat(case: type[Case], treatment: Treatment) -> Ending:
    """Train a case once more, with a treatment."""
    module = prepare(case, dict(treatment.settings))
    if treatment.learning_rate is not None:
        rate = max(group.get("initial_lr", group["lr"]) for one in _optimizers(module) for group in one.param_groups)
        module = prepare(case, {**treatment.settings, "lr": module.lr * treatment.learning_rate / rate})
    callbacks: list[Callback] = [_Groups(treatment.groups)] if treatment.groups else []
    callbacks.append(GradientExplosionMonitor(report=False, **treatment.monitor))
    return train(module, callbacks)


def _optimizers(module: Case) -> list[Optimizer]:
    made = module.configure_optimizers()
    made = made["optimizer"] if isinstance(made, dict) else made
    return made if isinstance(made, list) else [made]


class _Groups(Callback):
    """Sets hyperparameters of all parameter groups that have them, before the first batch."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Set them."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update({name: value for name, value in self._values.items() if name in group})
