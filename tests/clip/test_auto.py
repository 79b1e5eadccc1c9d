"""The automatic policy: outliers are cut, and steps for which there is evidence that they do harm are made smaller."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradexplode.clip import AutoPolicy
from lightning_gradexplode.records import StepRecord
from tests.detect.steps import noise, through_checkpoint


def thresholds(policy: AutoPolicy, norms: Iterable[float]) -> list[float | None]:
    """Return the thresholds of steps with these norms."""
    return [policy.threshold(StepRecord(step=step, grad_norm=norm)) for step, norm in enumerate(norms)]


class Quadratic:
    """A loss ``curvature / 2 * |w|^2`` of ten weights, with an optimizer and the automatic policy or none.

    Args:
        build: Makes the optimizer.
        curvature: Above ``2 / learning rate`` plain gradient descent diverges.
        policy: Whether to use the policy.
    """

    def __init__(
        self, build: Callable[..., torch.optim.Optimizer], curvature: float = 1.0, policy: bool = True
    ) -> None:
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 10, dtype=torch.float64))
        self.optimizer = build([self.weight])
        self.curvature = curvature
        self.policy = AutoPolicy() if policy else None
        if self.policy is not None:
            self.policy.begin(self.optimizer)
        self.losses: list[float] = []
        self.factors: list[float] = []
        self.step = 0

    def train(self, steps: int) -> float:
        """Run steps as the engine does, with the gradients known before the optimizer's step; return the loss."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.curvature / 2 * self.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            self.losses.append(float(loss.detach()))
            assert self.weight.grad is not None
            norm = float(self.weight.grad.norm())
            if self.policy is not None:
                start = float(self.weight.detach().norm()) if self.step == 0 else None
                record = StepRecord(step=self.step, loss=self.losses[-1], grad_norm=norm, weight_norm_before=start)
                limit = self.policy.threshold(record)
                if limit is not None and norm > limit:
                    self.weight.grad.mul_(limit / norm)
                self.policy.step_begins(self.optimizer)
                self.factors.append(self.policy.scalars()["step_size_factor"])
            self.optimizer.step()
            if self.policy is not None:
                self.policy.step_ended(self.optimizer)
            self.step += 1
        return float(self.curvature / 2 * self.weight.detach().square().sum())


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_usual_gradients_pass_and_outliers_are_cut_to_four_times_the_largest(size: float) -> None:
    """The threshold follows the size of the gradients, and one spike does not move it far."""
    norms = [size * value for value in noise(100, 0.2)]
    policy = AutoPolicy()
    found = thresholds(policy, norms)
    assert all(limit is not None and norm < limit for norm, limit in zip(norms, found, strict=True))
    (limit,) = thresholds(policy, [1e6 * size])
    assert limit == pytest.approx(4 * max(norms[-50:]))


@pytest.mark.parametrize("rate", [1.05, 3.0])
def test_a_norm_that_grows_is_no_evidence_against_the_steps(rate: float) -> None:
    """Norms that rise healthily, as they do under Adam, are not held down."""
    norms = [min(rate**step, 1e12) for step in range(200)]
    found = thresholds(AutoPolicy(), norms)
    assert all(limit is not None and norm <= limit for norm, limit in zip(norms, found, strict=True))


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
)
def test_a_healthy_run_keeps_every_bit(build: Any) -> None:
    """Where there is no evidence, weights are those of a run without the policy."""
    with_policy, without = Quadratic(build), Quadratic(build, policy=False)
    with_policy.train(200)
    without.train(200)
    assert torch.equal(with_policy.weight, without.weight)
    assert set(with_policy.factors) == {1.0}


@pytest.mark.parametrize(
    "build",
    [
        lambda p: torch.optim.SGD(p, lr=1.0),
        lambda p: torch.optim.SGD(p, lr=50.0),
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-4),
    ],
)
def test_a_rate_that_diverges_is_made_to_converge(build: Any) -> None:
    """Gradient descent far above what the curvature allows ends near the minimum; without the policy it is lost."""
    run = Quadratic(build, curvature=10.0)
    end = run.train(300)
    assert end < 0.1 * run.losses[0]
    assert max(run.losses) < 10 * run.losses[0]
    assert not Quadratic(build, 10.0, policy=False).train(300) < 1e6


def test_steps_of_adam_begin_small_where_they_would_move_the_weights_far() -> None:
    """Clipping the gradient does nothing to Adam; the learning rate does."""
    run = Quadratic(lambda p: torch.optim.Adam(p, lr=3.0))
    run.train(1)
    assert run.factors[0] * 3.0 == pytest.approx(
        1.3 * 0.02 * float(torch.linspace(0.5, 1.5, 10).norm()) / 10**0.5, rel=1e-6
    )
    plain = Quadratic(lambda p: torch.optim.Adam(p, lr=3.0), policy=False)
    plain.train(20)
    run.train(19)
    assert max(run.losses) <= run.losses[0] < max(plain.losses)


def test_learning_rates_between_steps_are_the_schedules() -> None:
    """The factor is in force during the step only, so that schedulers and checkpoints see their own rates."""
    run = Quadratic(lambda p: torch.optim.SGD(p, lr=50.0, momentum=0.5), curvature=10.0)
    for _ in range(30):
        run.train(1)
        assert run.optimizer.param_groups[0]["lr"] == 50.0
    assert min(run.factors) < 0.1


def test_a_rate_that_failed_is_not_tried_again_soon() -> None:
    """After a failure steps stay below the size that failed."""
    run = Quadratic(lambda p: torch.optim.SGD(p, lr=50.0, momentum=0.5), curvature=10.0)
    run.train(400)
    rises = [later > 1.5 * before + 1e-9 for before, later in zip(run.losses[60:], run.losses[61:], strict=False)]
    assert sum(rises) <= 12


def test_the_limit_of_outliers_does_not_follow_an_explosion() -> None:
    """Once the loss is out of its region, norms that grow tenfold a step no longer raise what they are clipped to."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=0.1, momentum=0.9))
    healthy, limits = noise(40, 0.05), []
    for step in range(60):
        growth = 10.0 ** max(0, step - 39)
        noisy = healthy[step % 40]
        record = StepRecord(step=step, loss=noisy * growth, grad_norm=noisy * growth, weight_norm_before=10.0)
        limits.append(policy.threshold(record))
    assert limits[-1] == limits[-10]
    assert 0 < (limits[-1] or math.inf) < 200 * max(healthy)


def test_a_healthy_norm_that_doubles_now_and_again_keeps_the_full_step() -> None:
    """Under momentum a larger gradient moves the weights little, as in runs that accumulate small batches."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=0.3, momentum=0.9))
    for step in range(120):
        norm = (0.5 + 0.005 * step) * (2.2 if step % 9 == 8 else 1.0)
        policy.threshold(StepRecord(step=step, loss=2.3 * 0.98**step, grad_norm=norm, weight_norm_before=6.8))
        assert policy.scalars() == {"step_size_factor": 1.0}


def factors(policy: AutoPolicy, losses: Iterable[float], norm: float = 0.5, weights: float = 10.0) -> list[float]:
    """Return the factors of steps with these losses, of gradients with the same norm."""
    found = []
    for step, loss in enumerate(losses):
        policy.threshold(StepRecord(step=step, loss=loss, grad_norm=norm, weight_norm_before=weights))
        found.append(policy.scalars()["step_size_factor"])
    return found


BUILDS = [lambda p: torch.optim.SGD(p, lr=0.01), lambda p: torch.optim.Adam(p, lr=1e-4)]


@pytest.mark.parametrize("build", BUILDS)
def test_a_rise_that_the_steps_cannot_have_caused_is_no_evidence_against_them(build: Any) -> None:
    """A new task raises the loss fiftyfold after steps that would have lowered it by a thousandth at most."""
    policy = AutoPolicy()
    policy.begin(build([nn.Parameter(torch.ones(100))]))
    assert set(factors(policy, [*noise(40, 0.05), *(50 * one for one in noise(40, 0.05))])) == {1.0}


@pytest.mark.parametrize("build", BUILDS)
def test_a_second_rise_before_the_first_is_made_good_is_evidence(build: Any) -> None:
    """A loss that rises on and on is held, whatever the gradients say about its causes."""
    policy = AutoPolicy()
    policy.begin(build([nn.Parameter(torch.ones(100))]))
    levels = [1.0] * 40 + [50.0] * 10 + [2500.0] * 10
    found = factors(policy, [level * one for level, one in zip(levels, noise(60, 0.05), strict=True)])
    assert set(found[:50]) == {1.0}
    assert max(found[55:]) < 0.5


@pytest.mark.parametrize(("loss", "is_far"), [(400.0, False), (4.0, True)])
def test_large_steps_begin_small_only_where_they_promise_a_large_part_of_the_loss(loss: float, is_far: bool) -> None:
    """Parameters that start next to zero have to move by more than their own size."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.full((4,), 0.1))], lr=0.02))
    found = factors(policy, [loss * 0.95**step for step in range(30)], norm=10.0, weights=0.2)
    assert (min(found) < 0.1) is is_far
    assert (max(found[:3]) < 1.0) is is_far


def test_a_rate_is_tried_again_where_small_steps_do_not_bring_the_loss_down() -> None:
    """A loss that stays at its new level has nothing to do with the steps; they grow until they reach the rate."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=1.0))
    levels = [1.0] * 40 + [3.4] * 150
    falling = [level * 0.998**step for step, level in enumerate(levels)]
    found = factors(policy, falling, norm=0.5)
    assert min(found[40:60]) < 0.5
    assert found[-1] > 0.4


@pytest.mark.parametrize(("momentum", "most"), [(0.9, 1.3), (0.99, 1.1), (0.999, 1.04)])
def test_steps_grow_more_slowly_the_longer_momentum_adds_them_up(momentum: float, most: float) -> None:
    """The loss shows what a step did only after as many steps as the momentum remembers."""
    run = Quadratic(lambda p: torch.optim.SGD(p, lr=5.0, momentum=momentum), curvature=1.0)
    run.train(15)
    growth = [later / before for before, later in zip(run.factors[1:], run.factors[2:], strict=False)]
    assert 1.0 < max(growth) <= most + 1e-9


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf, -1e30, 1e300])
def test_any_loss_gives_a_usable_factor(loss: float) -> None:
    """Whatever comes, the factor is above 0 and at most 1."""
    policy = AutoPolicy()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1e3)
    policy.begin(optimizer)
    for step in range(60):
        value = loss if step % 7 == 3 else math.sin(step)
        policy.threshold(StepRecord(step=step, loss=value, grad_norm=abs(math.cos(step)), weight_norm_before=1.7))
        assert 0 < policy.scalars()["step_size_factor"] <= 1


def test_without_a_loss_there_is_no_evidence() -> None:
    """In manual optimization the loss comes after the step: nothing but outliers is limited."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1e3))
    thresholds(policy, [5.0] * 20)
    assert policy.scalars() == {"step_size_factor": 1.0}


@pytest.mark.parametrize("stop", [1, 5, 20, 47])
def test_a_resumed_run_takes_the_same_steps(stop: int) -> None:
    """All that later steps depend on goes through a checkpoint."""

    def build(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=5.0, momentum=0.9)

    whole, first = Quadratic(build, 10.0), Quadratic(build, 10.0)
    whole.train(60)
    first.train(stop)
    resumed = Quadratic(build, 10.0)
    resumed.step = first.step
    resumed.weight.data.copy_(first.weight.data)
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    assert resumed.policy is not None
    assert first.policy is not None
    assert resumed.policy.load_state_dict(through_checkpoint(first.policy.state_dict())) == []
    resumed.train(60 - stop)
    assert torch.equal(resumed.weight, whole.weight)


def test_a_state_of_the_start_can_be_restored_later() -> None:
    """A rollback to the start of a fit restores what was not known then as not known."""
    policy, fresh = AutoPolicy(), AutoPolicy()
    start = through_checkpoint(policy.state_dict())
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=1e3))
    for step in range(30):
        policy.threshold(StepRecord(step=step, loss=2.0**step, grad_norm=1.0, weight_norm_before=1.7))
    assert policy.load_state_dict(start) == []
    assert policy.state_dict() == fresh.state_dict()


def notices(policy: AutoPolicy, losses: Iterable[float], norm: float = 0.5, weights: float = 10.0) -> list[str]:
    """Return what the policy reports at steps with these losses, of gradients with the same norm."""
    found = []
    for step, loss in enumerate(losses):
        policy.threshold(StepRecord(step=step, loss=loss, grad_norm=norm, weight_norm_before=weights))
        found += [text for text in [policy.notice()] if text is not None]
    return found


def test_a_rate_that_is_far_too_high_is_reported_with_the_factor_and_its_end() -> None:
    """One line says by how much steps are shortened and why, and one says that they no longer are."""
    policy = AutoPolicy()
    policy.begin(torch.optim.Adam([nn.Parameter(torch.ones(100))], lr=1.0))
    found = notices(policy, [2.0 * 0.97**step for step in range(120)])
    assert "multiplies the learning rate by 0.0" in found[0]
    assert "may overshoot" in found[0]
    assert found[-1] == 'clip="auto" no longer reduces the learning rate'
    assert len(found) <= 3


def test_a_healthy_run_reports_nothing() -> None:
    """Where nothing is limited, nothing is logged."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=0.01))
    assert notices(policy, [2.0 * 0.97**step for step in range(120)]) == []


def test_a_loss_that_is_not_finite_is_reported_as_such() -> None:
    """And not by the losses before it."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=0.1))
    (line,) = notices(policy, [2.0] * 20 + [math.nan])
    assert line.endswith(": the loss is not finite, which the last steps may have caused")


def test_an_outlier_is_reported_with_its_norm_and_its_limit() -> None:
    """The line says what the norm was, and to what it is clipped."""
    policy = AutoPolicy()
    thresholds(policy, [1.0] * 60 + [1e6])
    assert policy.notice() == 'clip="auto" clips a gradient norm of 1e+06 to 4, above which it is an outlier'


@pytest.mark.parametrize(("norm", "is_forgiven"), [(0.05, True), (30.0, False)])
def test_a_rise_is_forgiven_only_if_the_coming_step_is_harmless(norm: float, is_forgiven: bool) -> None:
    """A rise that no step before can have caused counts against them if the next one would move the weights far."""
    policy, reports = AutoPolicy(), []
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=0.1))
    for step, noisy in enumerate(noise(50, 0.05)):
        has_risen = step >= 40
        loss, size = (50 * noisy, norm) if has_risen else (noisy, 0.05)
        policy.threshold(StepRecord(step=step, loss=loss, grad_norm=size, weight_norm_before=10.0))
        reports.append(policy.notice() or "")
    assert any("which the last steps may have caused" in one for one in reports) is not is_forgiven
    assert (policy.scalars()["step_size_factor"] == 1.0) is is_forgiven


@pytest.mark.parametrize("noise_size", [0.0, 0.2])
def test_steps_too_small_to_show_in_the_loss_grow_again(noise_size: float) -> None:
    """After a failure, a loss that noise keeps where it is does not shorten steps that could not have lowered it."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=1.0))
    levels = [1.0] * 40 + [3.4] * 200
    found = factors(policy, [level * one for level, one in zip(levels, noise(240, noise_size), strict=True)], norm=0.5)
    assert min(found[40:60]) < 0.5
    assert found[-1] > 0.05


def test_after_a_rollback_steps_begin_small_and_stay_below_the_limit() -> None:
    """The state of an earlier step knows nothing of the size that has failed since."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=1.0))
    before = through_checkpoint(policy.state_dict())
    factors(policy, [2.0] * 10)
    assert policy.largest_step_size() == 1.0
    policy.load_state_dict(before)
    policy.limit_step_size(0.5)
    found = factors(policy, [2.0 * 0.97**step for step in range(30)])
    assert found[0] <= 0.5 / 15 * 1.3
    assert found[0] < max(found) <= 0.75


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_that_momentum_remembers_count_as_part_of_the_step(momentum: float) -> None:
    """After a burst the gradients are small again, but not the step: its buffers still hold the large ones."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=0.05, momentum=momentum))
    found = []
    for step in range(41):
        norm = 200.0 if 30 <= step < 36 else 5.0
        policy.threshold(StepRecord(step=step, loss=2.0, grad_norm=norm, weight_norm_before=10.0))
        found.append(policy.scalars()["step_size_factor"])
    assert set(found[:30]) == {1.0}
    assert (found[36] < 1.0) is (momentum > 0)


def test_no_step_after_a_failure_moves_the_weights_further_than_one_surely_harmless() -> None:
    """The step after a failure is not measured by the one that failed, which may have been enormous."""
    policy = AutoPolicy()
    policy.begin(torch.optim.SGD([nn.Parameter(torch.ones(100))], lr=0.1, momentum=0.9))
    for step in range(60):
        growth = 100.0 ** max(0, min(step - 39, 8))
        loss, norm = 2.0 * 0.99**step * growth, 1.0 * growth
        policy.threshold(StepRecord(step=step, loss=loss, grad_norm=norm, weight_norm_before=10.0))
        if step > 41:
            shares = policy.scalars()["step_size_factor"] * 0.1 * norm * 10**0.6 / 10.0
            assert shares <= 0.15 + 1e-9


@pytest.mark.parametrize("momentum", [0.8, 0.9])
def test_a_run_whose_curvature_rises_is_saved(momentum: float) -> None:
    """Two weights whose product is to be one: the curvature grows with them, past what the rate takes."""
    first, second = (nn.Parameter(torch.full((6,), 0.05, dtype=torch.float64)) for _ in range(2))
    optimizer = torch.optim.SGD([first, second], lr=0.6, momentum=momentum)
    policy = AutoPolicy()
    policy.begin(optimizer)
    for step in range(400):
        optimizer.zero_grad()
        loss = (first.pow(2) @ second.pow(2) - 3.0).square()
        loss.backward()  # type: ignore[no-untyped-call]
        assert first.grad is not None
        assert second.grad is not None
        norm = math.hypot(float(first.grad.norm()), float(second.grad.norm()))
        start = 0.17 if step == 0 else None
        limit = policy.threshold(
            StepRecord(step=step, loss=float(loss.detach()), grad_norm=norm, weight_norm_before=start)
        )
        if limit is not None and norm > limit:
            first.grad.mul_(limit / norm)
            second.grad.mul_(limit / norm)
        policy.step_begins(optimizer)
        optimizer.step()
        policy.step_ended(optimizer)
    assert float(loss.detach()) < 0.1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(("norm", "is_held_down"), [(0.0, False), (1.0, True)])
def test_a_loss_that_is_not_finite_counts_if_it_reaches_the_weights(
    optimizer: Callable[..., torch.optim.Optimizer], norm: float, is_held_down: bool
) -> None:
    """A mean over nothing has a NaN loss and no gradient: the steps before it are not the cause."""
    policy = AutoPolicy()
    policy.begin(optimizer([nn.Parameter(torch.ones(10))], lr=0.01))
    factors = []
    for step in range(60):
        is_empty = step % 20 == 10
        record = StepRecord(
            step=step,
            loss=math.nan if is_empty else 3.0 - 0.03 * step,
            grad_norm=norm if is_empty else 1.0,
            weight_norm_before=math.sqrt(10) if step == 0 else None,
        )
        policy.threshold(record)
        factors.append(policy.scalars()["step_size_factor"])
    assert (min(factors) < 1.0) == is_held_down


@pytest.mark.parametrize(("length", "is_held_down"), [(1, False), (2, True)])
def test_a_loss_and_a_gradient_that_are_not_finite_count_from_the_second_on(length: int, is_held_down: bool) -> None:
    """A batch that holds NaN ends with itself, if its update is skipped; weights that diverge have a second one."""
    policy = AutoPolicy()
    policy.begin(torch.optim.Adam([nn.Parameter(torch.ones(10))], lr=0.01))
    factors = []
    for step in range(60):
        is_bad = step % 20 < length and step > 0
        record = StepRecord(
            step=step,
            loss=math.nan if is_bad else 3.0 - 0.03 * step,
            grad_norm=math.nan if is_bad else 1.0,
            weight_norm_before=math.sqrt(10) if step == 0 else None,
        )
        policy.threshold(record)
        factors.append(policy.scalars()["step_size_factor"])
    assert (min(factors) < 1.0) == is_held_down
