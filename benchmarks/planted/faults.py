"""Faults that a task can have, with the kinds of cause that are right.

They were written down before any run, except for what `benchmarks/README.md` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.planted.tasks import Batch, Segmentation, Task, is_float

ROW = 37
"""The sample at fault, where it is one."""


@dataclass(slots=True, eq=False)
class Plan:
    """What a run does; a fault changes it.

    Args:
        task: The task.
        data: Its training set.
        lr: The learning rate.
        steps: Number of steps.
        jump: Factor by which the learning rate is raised at step 60, 1 for a constant one.
        clears: Whether gradients are cleared.
        sums: Number of micro-batches whose gradients are summed and not averaged.
        is_half: Whether everything is in float16.
        prepare: Changes a batch before the network takes it.
        optimizer: Builds another optimizer than that of the task.
    """

    task: Task
    data: Batch
    lr: float
    steps: int = 160
    jump: float = 1.0
    clears: bool = True
    sums: int = 1
    is_half: bool = False
    prepare: Callable[[Batch, int], Batch] = field(default=lambda batch, step: batch)
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault.

    Args:
        name: What is wrong.
        kinds: The kinds of cause that are right.
        plant: Changes the plan of a run.
        suits: Whether a task can have it.
    """

    name: str
    kinds: tuple[str, ...]
    plant: Callable[[Plan], None]
    suits: Callable[[type[Task]], bool] = lambda task: True


def has_inputs(task: type[Task]) -> bool:
    """Return whether a task has inputs of real numbers."""
    return bool(task.inputs)


def has_real_targets(task: type[Task]) -> bool:
    """Return whether a task has targets of real numbers."""
    return is_float(task, task.targets)


def _has_labels(task: type[Task]) -> bool:
    return bool(task.targets) and not has_real_targets(task)


def _rate(plan: Plan) -> None:
    plan.lr *= plan.task.far_too_high


def _jump(plan: Plan) -> None:
    plan.jump = plan.task.far_too_high


def _nan_sample(plan: Plan) -> None:
    plan.data[plan.task.inputs[0]][ROW].view(-1)[0] = torch.nan


def _nan_target(plan: Plan) -> None:
    plan.data[plan.task.targets[0]][ROW] = torch.nan


def _outlier(plan: Plan) -> None:
    plan.data[plan.task.inputs[0]][ROW] *= 1e8


def _unscaled_inputs(plan: Plan) -> None:
    for name in plan.task.inputs:
        plan.data[name] = plan.data[name] * 1e5 + 3e5


def _unscaled_targets(plan: Plan) -> None:
    plan.data[plan.task.targets[0]] *= 1e6


def _not_cleared(plan: Plan) -> None:
    plan.clears, plan.lr = False, 3 * plan.lr


def _negated(plan: Plan) -> None:
    outputs_and_loss = type(plan.task).outputs_and_loss

    class Negated(type(plan.task)):  # type: ignore[misc]
        def outputs_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
            outputs, loss = outputs_and_loss(self, batch)
            return outputs, -loss

    plan.task.__class__ = Negated
    plan.steps, plan.lr = 400, 5 * plan.lr


def _entropy(outputs: Tensor) -> Tensor:
    scores = 200 * outputs
    shares = scores.softmax(-1) if outputs.shape[-1] > 1 else scores.sigmoid()
    return 0.01 * (shares * shares.log()).sum(-1).mean()


def _norm(outputs: Tensor) -> Tensor:
    typical, spread = outputs.detach().mean(0), outputs.detach().std(0)
    norm: Tensor = torch.linalg.vector_norm((outputs - typical - 2 * spread - 1e-3).relu(), dim=-1)
    return 0.01 * norm.mean()


def _angle(outputs: Tensor) -> Tensor:
    cosine = nn.functional.cosine_similarity(outputs, outputs.detach(), dim=-1).clamp(-1, 1)
    angle = torch.acos(cosine)
    return 0.01 * angle.mean()


def _selected(outputs: Tensor, factor: float) -> Tensor:
    sizes = outputs.detach().abs().amax(-1)
    return 0.01 * outputs[sizes > factor * sizes.median()].pow(2).mean()


def _penalty(penalty: Callable[[Tensor], Tensor]) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        plan.task.penalty = penalty

    return plant


def _empty_mask(plan: Plan) -> None:
    factor = [1.0]

    def prepare(batch: Batch, step: int) -> Batch:
        factor[0] = 1.0 if step < 40 else 1e6
        return batch

    plan.prepare, plan.task.penalty = prepare, lambda outputs: _selected(outputs, factor[0])


def _constant_samples(plan: Plan) -> None:
    name = plan.task.inputs[0]
    plan.data[name][100:132] = plan.data[name][100:101].mean()

    def prepare(batch: Batch, step: int) -> Batch:
        rows = batch[name].flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
        return {**batch, name: rows.view_as(batch[name])}

    plan.prepare = prepare


def _large_weights(plan: Plan) -> None:
    for module in plan.task.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=8.0)
        elif isinstance(module, nn.LSTM | nn.GRU):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=8.0)


def _half(plan: Plan) -> None:
    plan.is_half = True


def _no_epsilon(plan: Plan) -> None:
    plan.task.labels = nn.Embedding(4, 4)  # of which one is used, so that the gradient of the others is zero
    labels: Any = plan.task.labels
    plan.task.penalty = lambda outputs: labels.weight[0].pow(2).mean()
    lr = plan.lr
    plan.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=lr, eps=0.0)


def _short_memory(plan: Plan) -> None:
    lr = 30 * plan.lr
    plan.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=lr, betas=(0.99, 0.1))


def _summed(plan: Plan) -> None:
    plan.sums, plan.steps = 64, 12


def _ignored_labels(plan: Plan) -> None:
    name = plan.task.targets[0]
    plan.prepare = lambda batch, step: {**batch, name: torch.full_like(batch[name], -100)} if step >= 70 else batch


def _mask_of_bytes(plan: Plan) -> None:
    plan.data["y"] *= 255


FAULTS: tuple[Fault, ...] = (
    Fault("a learning rate far too high", ("learning-rate",), _rate),
    Fault("a learning rate that jumps", ("learning-rate-jump",), _jump),
    Fault("NaN in a sample", ("nonfinite-input",), _nan_sample, has_inputs),
    Fault("NaN in a target", ("nonfinite-target", "nonfinite-input"), _nan_target, has_real_targets),
    Fault("a sample times 1e8", ("outlier-batch",), _outlier, has_inputs),
    Fault("inputs of 3e5", ("unscaled-data",), _unscaled_inputs, has_inputs),
    Fault("targets of 1e6", ("unscaled-data",), _unscaled_targets, has_real_targets),
    Fault("gradients that are not cleared", ("accumulated-gradients",), _not_cleared),
    Fault("a negated loss", ("loss-without-floor",), _negated),
    Fault("an entropy with the logarithm of 0", ("undefined-operation",), _penalty(_entropy)),
    Fault("a norm of 0", ("undefined-operation",), _penalty(_norm)),
    Fault("an angle between equal vectors", ("undefined-operation",), _penalty(_angle)),
    Fault(
        "samples that are divided by a deviation of 0",
        ("undefined-operation", "nonfinite-input", "empty-reduction"),
        _constant_samples,
        has_inputs,
    ),
    Fault("a mean over nothing", ("empty-reduction",), _empty_mask),
    Fault("labels that are all ignored", ("empty-reduction",), _ignored_labels, _has_labels),
    Fault("a mask from 0 to 255", ("target-out-of-range",), _mask_of_bytes, lambda task: task is Segmentation),
    Fault("weights that start far too large", ("initialization",), _large_weights),
    Fault("everything in float16", ("half-precision",), _half),
    Fault("Adam without an epsilon", ("optimizer-state",), _no_epsilon),
    Fault("a second moment that forgets", ("optimizer-state",), _short_memory),
    Fault("gradients of 64 micro-batches that are summed", ("accumulated-gradients",), _summed),
)
