"""Policies that return what is no threshold, or raise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    AutoPolicy,
    ClipPolicy,
    ConstantClip,
    PercentileClip,
    StepRecord,
    ZScoreClip,
)
from lightning_gradexplode.clip import GuardedPolicy
from tests.detect.steps import through_checkpoint
from tests.runs.models import Regression
from tests.runs.probe import Watched


class Returns(ClipPolicy):
    """Returns what a test wants it to."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def threshold(self, record: StepRecord) -> Any:
        """Return it."""
        return self.value() if callable(self.value) else self.value


def fails() -> Any:
    """Raise."""
    raise RuntimeError("broken on purpose")


BAD = [-1, 0, 0.0, math.nan, math.inf, "1.0", True, torch.tensor(1.0), [1.0], object()]


@pytest.mark.parametrize("value", BAD, ids=lambda value: type(value).__name__)
def test_what_is_no_threshold_clips_nothing_and_is_logged_once(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Every such step goes unclipped; one line names the policy and what it returned."""
    policy = GuardedPolicy(Returns(value))
    assert [policy.threshold(StepRecord(step=step)) for step in range(3)] == [None] * 3
    (line,) = caplog.messages
    assert "threshold of Returns must be a positive finite number or None" in line


@pytest.mark.parametrize("value", [2, 0.5, np.float32(0.5), np.float64(3.0), np.int64(7)], ids=repr)
def test_numbers_of_all_kinds_are_thresholds(value: Any) -> None:
    """They come out as plain floats."""
    found = GuardedPolicy(Returns(value)).threshold(StepRecord(step=0))
    assert type(found) is float
    assert found == float(value)


def test_a_policy_that_raises_is_switched_off_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    """One line names it and the error; nothing is clipped any more."""
    policy = GuardedPolicy(Returns(fails))
    assert [policy.threshold(StepRecord(step=step)) for step in range(3)] == [None] * 3
    (line,) = caplog.messages
    assert "the clip policy Returns is switched off" in line
    assert "broken on purpose" in line


def test_a_state_of_another_policy_starts_fresh_and_is_named() -> None:
    """A corrupt state is named too, and the policy goes on."""
    other = GuardedPolicy(PercentileClip(window=9))
    assert other.load_state_dict(through_checkpoint(GuardedPolicy(ZScoreClip()).state_dict())) == ["PercentileClip"]
    assert other.load_state_dict({"kind": "PercentileClip", "state": {"_norms": 3}}) == ["PercentileClip._norms"]
    assert other.load_state_dict({"kind": "PercentileClip"}) == ["PercentileClip._norms"]
    assert other.threshold(StepRecord(step=0, grad_norm=2.0)) == 2.0


def test_a_state_that_cannot_be_read_costs_the_state_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint is written without it."""

    class Unsaveable(Returns):
        def state_dict(self) -> dict[str, Any]:
            raise TypeError("cannot pickle a lock")

    policy = GuardedPolicy(Unsaveable(1.0))
    assert policy.state_dict() == {"kind": policy.name, "state": {}}
    assert "cannot pickle a lock" in caplog.text


@pytest.mark.parametrize(
    "value", [-1, math.nan, "1.0", torch.tensor(1.0), fails], ids=lambda value: type(value).__name__
)
def test_a_bad_policy_ends_no_run(value: Any) -> None:
    """All steps take place, and the trainer's own setting is what it was."""
    run = Watched(Regression(), monitor={"clip": Returns(value)}, max_steps=6)
    assert len(run.logged) == 6
    assert not run.monitor.failed
    assert run.trainer.gradient_clip_val is None


class Sparse(Regression):
    """A table of rows, of which few have a gradient, and whose loss grows."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.layers = nn.Embedding(10, 4, sparse=True)
        self.automatic_optimization = not manual
        self.steps = 0

    def loss(self, batch: Any) -> Tensor:
        """Return a sum of squares that becomes larger; a row is looked up twice."""
        self.steps += 1
        rows: Tensor = self.layers(torch.tensor([1, 4, 4, 7]))
        return rows.square().sum() * 10.0**self.steps

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss, or step by hand."""
        loss = self.loss(batch)
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        """Build an optimizer that takes sparse gradients."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


POLICIES: list[Callable[[], ClipPolicy]] = [
    AutoPolicy,
    ConstantClip,
    lambda: ConstantClip(0.5, "value"),
    PercentileClip,
    lambda: ZScoreClip(warmup=2),
    AdaptiveGradientClip,
    lambda: AdaptiveTensorClip(warmup=1),
]


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("build", POLICIES)
def test_sparse_gradients_are_clipped_under_every_policy(build: Callable[[], ClipPolicy], manual: bool) -> None:
    """No policy ends the run; norms after clipping are those of a plain loop over what the optimizer got."""
    run = Watched(Sparse(manual), monitor={"clip": build()}, max_steps=8)
    assert len(run.logged) == 8
    assert not run.monitor.failed
    assert all(torch.isfinite(one).all() for one in run.module.parameters())
    constant = build()
    if isinstance(constant, ConstantClip) and constant.algorithm == "norm":
        assert all(metrics["gradexplode/grad_norm_clipped"] <= 1.0001 for metrics in run.logged)


def test_rows_of_a_sparse_gradient_are_cut_by_value_after_adding_up() -> None:
    """Two entries of one row add up before they are compared with the value, as in a dense gradient."""
    from lightning_gradexplode.clip.apply import clip_gradients

    indices, values = torch.tensor([[1, 4, 4]]), torch.tensor([[3.0, -0.2], [0.4, 0.1], [0.4, -9.0]])
    sparse = torch.sparse_coo_tensor(indices, values, (6, 2))
    expected = sparse.to_dense().clamp(-0.5, 0.5)
    clip_gradients([sparse], 0.5, "value", 1.0)
    assert torch.equal(sparse.to_dense(), expected)
