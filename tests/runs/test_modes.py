"""What is logged equals what the optimizer is handed and what its step changes, in every mode of Lightning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins import MixedPrecision

from lightning_gradexplode import Severity
from tests.runs.agreement import assert_agrees
from tests.runs.models import Odd, Regression
from tests.runs.probe import Watched, norm


def scaler(init_scale: float = 1024.0) -> MixedPrecision:
    """Return float16 with a real gradient scaler, which Lightning does not choose by itself on a CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Build AdamW."""
    return torch.optim.AdamW(parameters, lr=0.01)


def fused(parameters: Any) -> torch.optim.Optimizer:
    """Build an AdamW that divides by the scale of a gradient scaler itself."""
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


@pytest.mark.parametrize("build", [None, adamw, fused], ids=["sgd", "adamw", "fused"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_full_precision_is_measured_before_clipping(build: Any, clip: float | None) -> None:
    """With float32 the numbers are those before clipping, with and without it."""
    assert_agrees(Watched(Regression(build), gradient_clip_val=clip), 5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_are_measured_as_exactly(precision: Any) -> None:
    """Half and double precision are measured as exactly; only bfloat16 weights cannot hold their own change."""
    run = Watched(Regression(), precision=precision)
    assert_agrees(run, 5, update_tolerance=1e-2 if precision == "bf16-true" else 1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_scale_of_a_gradient_scaler_is_divided_out(accumulate: int, clip: float | None) -> None:
    """The scale of a gradient scaler is divided out."""
    run = Watched(Regression(), plugins=[scaler()], accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert_agrees(run, 5)
    assert all(record.loss_scale == 1024.0 for record in run.probe.records)
    assert all(record.loss is not None and 0 < record.loss < 100 for record in run.probe.records)


def test_fused_optimizer_under_a_gradient_scaler() -> None:
    """A fused optimizer is handed scaled gradients; what is logged is unscaled all the same."""
    assert_agrees(Watched(Regression(fused), plugins=[scaler()], scaled=True), 5)


def test_overflow_while_the_scale_settles() -> None:
    """Steps that a settling gradient scaler leaves out are logged as they are, and are only worth knowing."""
    run = Watched(Regression(), plugins=[scaler(2.0**24)], max_steps=12)
    assert_agrees(run, 12)
    over = [not truth.stepped for truth in run.probe.truths]
    assert 0 < sum(over) < 12
    assert [logged["gradexplode/nonfinite_count"] > 0 for logged in run.logged] == over
    early = [finding for finding in run.monitor.findings if finding.step < sum(over)]
    assert "nonfinite-gradient" in {finding.sign for finding in early}
    assert {finding.severity for finding in early} == {Severity.INFO}


@pytest.mark.parametrize("iterable", [False, True])
@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_gradients_are_measured_once(accumulate: int, iterable: bool) -> None:
    """The gradients of a whole window are measured once, also in a last window that is not full."""
    run = Watched(
        Regression(batches=7, iterable=iterable), accumulate_grad_batches=accumulate, max_epochs=2, max_steps=-1
    )
    assert_agrees(run, 2 * math.ceil(7 / accumulate))


def test_the_loss_of_a_window_is_the_mean_of_its_micro_batches() -> None:
    """The loss on record is that which training_step returned, whatever Lightning divides it by."""
    seen: list[float] = []

    class Seen(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            seen.append(float(loss.detach()))
            return loss

    run = Watched(Seen(batches=6), accumulate_grad_batches=3, max_steps=4)
    means = [sum(seen[start : start + 3]) / 3 for start in range(0, 12, 3)]
    assert [record.loss for record in run.probe.records] == pytest.approx(means, rel=1e-6)


def test_accumulation_that_changes_between_epochs() -> None:
    """A scheduler of accumulation changes when the optimizer steps, and the numbers follow."""
    scheduler = GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})
    run = Watched(Regression(batches=4), callbacks=[scheduler], max_epochs=3, max_steps=-1)
    assert_agrees(run, 4 + 2 + 2)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_training_step_that_returns_none() -> None:
    """A batch without a loss is no step: nothing is logged, and the steps around it agree."""

    class Skips(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx in (1, 4) else self.loss(batch)

    run = Watched(Skips(), max_epochs=1, max_steps=-1)
    assert_agrees(run, 6)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_window_with_a_batch_that_returns_none_at_its_end() -> None:
    """Where the last micro-batch of a window brings no backward pass, the step is measured all the same."""

    class Skips(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 3 else self.loss(batch)

    run = Watched(Skips(batches=6), accumulate_grad_batches=2, max_epochs=1, max_steps=-1)
    assert_agrees(run, 3)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_line_search_counts_its_first_evaluation(search: str | None) -> None:
    """A step of LBFGS evaluates often; its gradient is that of the first evaluation."""

    def build(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=5, line_search_fn=search)

    assert_agrees(Watched(Regression(build)), 5)


def test_parameters_of_any_kind_are_measured_exactly() -> None:
    """Tied parameters count once, unused and frozen ones not; sparse, complex, 0-dim and empty ones are exact."""
    run = Watched(Odd())
    assert_agrees(run, 5)
    names = run.probe.records[0].parameters
    assert "layers.0.weight" in names
    assert not {"layers.2.weight", "frozen.weight"} & set(names)
    assert run.logged[-1]["gradexplode/grad_norm/unused.weight"] == 0.0


def test_an_update_ratio_from_a_sample() -> None:
    """With a sample the ratio is estimated, near the true one, and all other numbers are exact."""
    layers = torch.nn.Sequential(torch.nn.Linear(6, 3000), torch.nn.Tanh(), torch.nn.Linear(3000, 1))
    run = Watched(Regression(layers=layers), monitor={"update_sample": 2000})
    for logged, truth in zip(run.logged, run.probe.truths, strict=True):
        change = norm(*(after - truth.before[name] for name, after in truth.after.items()))
        assert logged["gradexplode/update_ratio"] == pytest.approx(change / norm(*truth.before.values()), rel=0.2)
        assert logged["gradexplode/weight_norm"] == pytest.approx(norm(*truth.after.values()), rel=1e-6)
    assert run.monitor.last is not None
    assert run.monitor.last.histograms.keys() == {"gradient", "weight"}
