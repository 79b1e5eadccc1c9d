"""How often the monitor reads numbers back from where tensors live: on an accelerator, each time is a stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.overhead_timing import HOOKS, OPTIMIZER_HOOKS
from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.measure import reading
from tests.runs.models import Regression
from tests.runs.probe import QUIET
from tests.runs.test_modes import scaler


class ScalarReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operator behind ``Tensor.item``, ``float(tensor)`` and ``if tensor``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Reads:
    """Counts, step by step, what the monitor's hooks read: scalars, lists and transfers to the host."""

    def __init__(self, monitor: GradientExplosionMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scalars: list[int] = []
        self.transfers: list[int] = []
        self._now = [0, 0]
        for hook in HOOKS:
            setattr(monitor, hook, self._watched(getattr(monitor, hook), last=hook == "on_train_batch_end"))
        for hook in OPTIMIZER_HOOKS:
            monkeypatch.setattr(TrainingRun, hook, self._watched(getattr(TrainingRun, hook), last=False))
        for method in ("tolist", "cpu"):
            monkeypatch.setattr(Tensor, method, self._counted(getattr(Tensor, method)))

    def _watched(self, hook: Callable[..., Any], last: bool) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with ScalarReads() as reads:
                result = hook(*args, **kwargs)
            self._now[0] += reads.count
            if last:
                self.scalars.append(self._now[0])
                self.transfers.append(self._now[1])
                self._now = [0, 0]
            return result

        return watched

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor) -> Any:
            self._now[1] += 1
            return method(tensor)

        return counted


def reads_of(monkeypatch: pytest.MonkeyPatch, interval: int, **trainer: Any) -> Reads:
    """Train for eight steps, and count what is read at each."""
    layers = torch.nn.Sequential(*[torch.nn.Linear(6, 6) for _ in range(10)], torch.nn.Linear(6, 1))
    monitor = GradientExplosionMonitor(log_every_n_steps=interval, histogram_every_n_steps=0, report=False)
    reads = Reads(monitor, monkeypatch)
    pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False, callbacks=[monitor], **trainer).fit(Regression(layers=layers))
    assert len(reads.scalars) == 8
    return reads


@pytest.mark.parametrize("interval", [0, 1])
@pytest.mark.parametrize("scaled", [False, True])
def test_no_scalar_but_the_loss_is_read_by_itself(monkeypatch: pytest.MonkeyPatch, interval: int, scaled: bool) -> None:
    """One ``item`` of the loss and none of 22 parameters, also where everything is measured, and with a scaler."""
    reads = reads_of(monkeypatch, interval, plugins=[scaler()] if scaled else None)
    assert reads.scalars == [1] * 8
    assert reads.transfers == [0] * 8  # on the processor they are looked at where they lie


@pytest.mark.parametrize("scaled", [False, True])
def test_an_accelerator_is_read_once_a_step(monkeypatch: pytest.MonkeyPatch, scaled: bool) -> None:
    """Norms, loss and scale come by one transfer, with one more where the weights were looked at.

    They come a step late, but for the last step's. The loss of the first step is read, with its graph.
    """
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    reads = reads_of(monkeypatch, 0, plugins=[scaler()] if scaled else None)
    assert reads.scalars == [1, *[0] * 7]
    assert min(reads.transfers) == 1
    assert max(reads.transfers[1:]) == 3
    assert max(reads.transfers[1:-1]) == 2
    assert reads.transfers.count(1) >= 3
