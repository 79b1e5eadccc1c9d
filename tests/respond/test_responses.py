"""What is done about an explosion."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.records import Finding, Severity
from lightning_gradexplode.respond import (
    ExplosionError,
    RaiseError,
    RecurrentBound,
    ReduceLearningRate,
    Response,
    ResponseContext,
    Rollback,
    SaveCheckpoint,
    SkipStep,
    StopTraining,
    Warn,
    WeightPenalty,
)
from tests.respond.loops import CapableLoop, PlainLoop, context, finding

FINDINGS = [
    Finding(3, "nonfinite-loss", Severity.CRITICAL, None, float("inf"), 0.0, "the loss is inf"),
    Finding(3, "gradient-growth", Severity.CRITICAL, "layer.weight", 5.0, 1.0, "it grows"),
]


class Shout(Response):
    """A response of one's own."""

    def respond(self, findings: Sequence[Finding], run: ResponseContext) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("argument", "kinds"),
    [
        ("warn", [Warn]),
        ("stop", [StopTraining]),
        (["skip", "reduce-lr", "rollback"], [SkipStep, ReduceLearningRate, Rollback]),
        ("checkpoint", [SaveCheckpoint]),
        ("raise", [RaiseError]),
        (["warn", "stop"], [Warn, StopTraining]),
        (("raise", Shout()), [RaiseError, Shout]),
        (Shout(), [Shout]),
    ],
)
def test_what_on_explosion_takes(argument: Any, kinds: list[type[Response]]) -> None:
    """A name, a response, and a sequence of these each give what they stand for, in their order."""
    assert [type(response) for response in Arguments.checked(on_explosion=argument).responses] == kinds


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        ("explode", ValueError, ["on_explosion", "'explode'", '"warn"', '"stop"', '"raise"']),
        ("", ValueError, ["on_explosion", "''", '"warn"']),
        (["warn", "expl"], ValueError, ["on_explosion", "'expl'", '"warn"']),
        ([], ValueError, ["on_explosion", "[]", '"warn"']),
        ([3], TypeError, ["on_explosion", "3", '"warn"']),
        (3, TypeError, ["on_explosion", "3", '"warn"']),
        (None, TypeError, ["on_explosion", "None", '"warn"']),
        (Warn, TypeError, ["on_explosion", "Warn", '"warn"']),
    ],
)
def test_what_on_explosion_does_not_take(argument: Any, error: type[Exception], words: list[str]) -> None:
    """The message names the argument, what it got and what it takes."""
    with pytest.raises(error) as raised:
        Arguments.checked(on_explosion=argument)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "words"),
    [
        (SkipStep, {"most_in_a_row": 0}, ValueError, ["most_in_a_row", "0", "at least 1"]),
        (SkipStep, {"cooldown": 1.5}, TypeError, ["cooldown", "1.5", "whole number"]),
        (SkipStep, {"most": True}, TypeError, ["most", "True", "whole number"]),
        (ReduceLearningRate, {"factor": 0.0}, ValueError, ["factor", "0.0", "positive"]),
        (ReduceLearningRate, {"factor": 2}, ValueError, ["factor", "2", "at most 1"]),
        (ReduceLearningRate, {"factor": "half"}, TypeError, ["factor", "'half'", "number"]),
        (ReduceLearningRate, {"hold": -1}, ValueError, ["hold", "-1", "at least 0"]),
        (Rollback, {"every_n_steps": 0}, ValueError, ["every_n_steps", "0"]),
        (Rollback, {"learning_rate_factor": float("nan")}, ValueError, ["learning_rate_factor", "nan"]),
        (SaveCheckpoint, {"most": 0}, ValueError, ["most", "0", "at least 1"]),
        (WeightPenalty, {"l2": 0.0}, ValueError, ["l1", "l2", "0"]),
        (WeightPenalty, {"l1": -1.0}, ValueError, ["l1", "-1.0", "at least 0"]),
        (WeightPenalty, {"l2": float("inf")}, ValueError, ["l2", "inf", "finite"]),
        (WeightPenalty, {"parameters": "*"}, TypeError, ["parameters", "'*'", "sequence"]),
        (RecurrentBound, {"when": "later"}, ValueError, ["when", "'later'", "'always'"]),
        (RecurrentBound, {"weight": "much"}, TypeError, ["weight", "'much'", "number"]),
    ],
)
def test_what_responses_do_not_take(
    kind: Callable[..., Response], arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    """The message names the argument, what it got and what it takes."""
    with pytest.raises(error) as raised:
        kind(**arguments)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_the_error_travels_between_processes(copied: Callable[[ExplosionError], ExplosionError]) -> None:
    """The error keeps its findings and message when it is pickled, as launchers do with it."""
    error = copied(ExplosionError(FINDINGS))
    assert error.findings == FINDINGS
    assert str(error) == str(ExplosionError(FINDINGS))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
        (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
        (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1, "fused": True}),
        (torch.optim.RMSprop, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.Adagrad, {"lr": 0.1}),
        (torch.optim.Adadelta, {"lr": 0.1}),
        (torch.optim.NAdam, {"lr": 0.1}),
        (torch.optim.RAdam, {"lr": 0.1}),
        (torch.optim.ASGD, {"lr": 0.1}),
        (torch.optim.Rprop, {"lr": 0.1}),
    ],
)
def test_a_step_without_gradients_changes_nothing(kind: Callable[..., Optimizer], options: dict[str, Any]) -> None:
    """Once gradients are dropped, weights and the optimizer's own state keep every bit through its step."""
    weights = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))]
    optimizer = kind(weights, **options)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    before = copy.deepcopy((weights, optimizer.state_dict()["state"]))
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.nan)
    drop_gradients(optimizer)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(weights, before[0], strict=True))
    for place, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[1][place][name])), name


def test_steps_are_skipped_again_after_the_cooldown() -> None:
    """Once skipping has given up, it needs as many steps without a critical finding as the cooldown has, in a row."""
    response = SkipStep(most_in_a_row=1, cooldown=3)
    run = context()
    response.started(run)
    acted = []
    for is_bad in (True, True, False, False, True, False, False, False, True):
        if is_bad:
            acted.append(response.respond([finding()], run))
        response.batch_ended(context(severity=Severity.CRITICAL if is_bad else 0))
    assert acted == [True, False, False, True]


@pytest.mark.parametrize(
    ("response", "action"),
    [(SkipStep(), "skip"), (ReduceLearningRate(), "reduce-lr"), (Rollback(), "rollback"), (StopTraining(), "stop")],
)
def test_an_action_names_the_finding_that_it_acts_on(response: Response, action: str) -> None:
    """The action that is logged and kept for the report has the sign and the place of the first critical finding."""
    run = context(CapableLoop())
    response.started(run)
    run.findings = [finding("gradient-growth"), finding("diverging-loss")]
    response.respond(run.findings, run)
    response.batch_ended(run)
    (attempt,) = run.action_log.attempts
    assert attempt.action == action
    assert "because of" in attempt.detail
    assert "gradient-growth in layer.weight" in attempt.detail
    assert "diverging-loss" not in attempt.detail


@pytest.mark.parametrize(("sign", "skipped"), [("diverging-loss", 3), ("nonfinite-loss", 8)])
def test_skipping_ends_for_what_comes_from_the_weights_and_not_for_bad_batches(sign: str, skipped: int) -> None:
    """Every other step is critical: skips do not change a diverged loss, and a broken batch is over each time."""
    response, acted = SkipStep(), 0
    for step in range(16):
        is_bad = step % 2 == 0
        run = context(step=step, severity=Severity.CRITICAL if is_bad else 0)
        acted += bool(is_bad and response.respond([finding(sign, step)], run))
        response.batch_ended(run)
    assert acted == skipped


class Sizes:
    """The state of one clip policy that changes the learning rate, and of one that does not."""

    def __init__(self) -> None:
        self.limits: list[float | None] = []

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""

    def largest_step_sizes(self) -> list[float | None]:
        """Return the sizes of the last steps."""
        return [0.4, None]

    def limit_step_sizes(self, sizes: Sequence[float | None]) -> None:
        """Record the limits."""
        self.limits = [*sizes]


def test_a_rollback_limits_the_size_that_a_clip_policy_has_taken_and_not_the_schedule() -> None:
    """The rate of the schedule is far above the size that failed: half of the rate would change nothing."""
    response, sizes = Rollback(), Sizes()
    response.started(context(memory=sizes, last_step=-1))
    run = context(memory=sizes, severity=Severity.CRITICAL)
    assert response.respond([finding("diverging-loss")], run)
    response.batch_ended(run)
    assert sizes.limits == [0.2, None]
    assert response.scalars() == {"rollbacks": 1.0, "rollback_rate_factor": 1.0}
    assert "learning rates of at most 0.2" in run.action_log.attempts[-1].detail


def lossy(loss: float, step: int, severity: int = 0, loop: PlainLoop | None = None) -> ResponseContext:
    """Build what a response gets at a step with a loss."""
    run = context(loop, step=step, severity=severity)
    assert run.record is not None
    run.record = replace(run.record, loss=loss)
    return run


def explode(response: Rollback, step: int, loss: float, loop: PlainLoop) -> bool:
    """Call a response at a step with a critical finding, and return whether it acted."""
    run = lossy(loss, step, Severity.CRITICAL, loop)
    acted = response.respond([finding("diverging-loss", step)], run)
    response.batch_ended(run)
    return acted


def test_a_rollback_that_does_not_fit_changed_data_is_undone_and_later_states_are_used() -> None:
    """The restored weights had a loss of 1, and have one of 90 on the new data, more than those that failed."""
    response, loop = Rollback(every_n_steps=5, margin=5), PlainLoop()
    (weight, _) = loop.net.parameters()

    def steps(first: int, last: int, loss: float) -> None:
        for step in range(first, last):
            with torch.no_grad():
                weight.fill_(step)
            response.batch_ended(lossy(loss + 0.1 * (step % 3), step, loop=loop))

    response.started(context(loop, last_step=-1))
    steps(0, 20, 1.0)
    assert explode(response, 20, 80.0, loop)
    assert weight[0, 0].item() < 15
    assert explode(response, 21, 90.0, loop)  # the update is held back, and the state from before is back
    assert weight[0, 0].item() == 19
    assert explode(response, 22, 80.0, loop) is False
    assert response.scalars()["rollbacks"] == 1.0
    steps(23, 40, 20.0)
    assert explode(response, 40, 900.0, loop)
    assert 23 < weight[0, 0].item() < 35
    assert response.scalars()["rollbacks"] == 2.0


def test_a_rollback_that_helps_is_kept() -> None:
    """The loss is again what it was."""
    response, loop = Rollback(every_n_steps=5, margin=5), PlainLoop()
    response.started(context(loop, last_step=-1))
    for step in range(20):
        response.batch_ended(lossy(1.0, step, loop=loop))
    assert explode(response, 20, 80.0, loop)
    for step in range(21, 25):
        response.batch_ended(lossy(1.1, step, loop=loop))
    assert explode(response, 25, 80.0, loop)
    assert response.scalars()["rollbacks"] == 2.0
