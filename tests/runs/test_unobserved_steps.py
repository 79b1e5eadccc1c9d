"""Updates of the weights that no hook of an optimizer shows."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import GradientExplosionMonitor
from tests.runs.models import Batch, Manual
from tests.runs.optimizers import ByHand, NanAtThree, fitted
from tests.runs.probe import QUIET


class Unknown(ByHand):
    """Steps an optimizer that Lightning has never seen."""

    def __init__(self) -> None:
        super().__init__(lambda module, optimizer, closure: None, lambda parameters: [])
        self.own = torch.optim.Adam(self.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Step it."""
        self.own.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        self.own.step()
        return loss


class UnknownData(Unknown):
    """Writes to its weights through ``.data``, which no version counter shows, in an optimizer of its own."""

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Write."""
        self.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.01)
        return loss


class UnknownBackward(Unknown):
    """Calls ``backward`` itself too."""

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients without Lightning."""
        loss.backward()  # type: ignore[no-untyped-call]


class StepsInOptimizerStep(NanAtThree):
    """Updates its weights in its own ``optimizer_step``, in automatic optimization."""

    def optimizer_step(self, epoch: Any, batch_idx: Any, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Descend."""
        optimizer_closure()
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.data.sub_(parameter.grad, alpha=0.01)


@pytest.mark.parametrize(
    "module",
    [Unknown, UnknownBackward, UnknownData, StepsInOptimizerStep],
    ids=["unknown optimizer", "unknown backward", "through data", "in optimizer_step"],
)
def test_steps_that_cannot_be_observed_are_reported(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One line says that they are not measured, no wrong number is logged, and nothing fails."""
    monitor, records = fitted(module())
    assert not monitor.failed
    assert records == [None] * 8
    lines = [record.getMessage() for record in caplog.records if "no step was seen" in record.getMessage()]
    assert len(lines) == 1
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("is_seen", [False, True])
def test_gradients_of_a_backward_pass_that_is_not_observed_are_reported(
    is_seen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """``loss.backward()`` in manual optimization is not observed: the norm is that after the user's clipping."""

    class Clipped(Manual):
        def training_step(self, batch: Batch, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss(batch)
            if is_seen:
                self.manual_backward(loss)
            else:
                loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.parameters(), 1e-3)
            optimizer.step()

    monitor = GradientExplosionMonitor(report=False)
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(Clipped(1))
    assert monitor.last is not None
    assert monitor.last.grad_norm is not None
    assert (monitor.last.grad_norm > 1.1e-3) is is_seen
    lines = [one.getMessage() for one in caplog.records if "manual_backward(loss) has not computed" in one.getMessage()]
    assert len(lines) == (0 if is_seen else 1)


def test_accumulation_by_hand_is_not_mistaken_for_steps(caplog: pytest.LogCaptureFixture) -> None:
    """Batches without a step, which leave the weights as they are, are nothing to tell of."""
    monitor, _ = fitted(ByHand(lambda module, optimizer, closure: closure()))
    assert monitor.last is None
    assert "no step was seen" not in caplog.text
