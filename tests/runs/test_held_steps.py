"""Calm steps, which are held, are evaluated at the end of a run, and whenever a result or the state is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch, Severity
from lightning_gradexplode.detect.detector_set import DetectorSet

DEAD, FOUND = 100, 119
"""The first step without a gradient, and the one that is the 20th in a row, at which this is found."""

Results = dict[str, Any]


def losses_of(network: nn.Module, step: int) -> Tensor:
    """Return a noisy loss, from a step on without a gradient, as that of units that are never active."""
    values = network(torch.randn(8, 4, generator=torch.Generator().manual_seed(step)))
    loss: Tensor = (values - 1).square().mean()
    return loss if step < DEAD else loss * 0.0 + 1.0


def watched(steps: int, look: Callable[[GradientWatch, int], None] = lambda watch, step: None) -> Results:
    """Train in a plain loop, and return the results."""
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    optimizer = SGD(network.parameters(), lr=1e-3)
    with GradientWatch(network, optimizer, report=False) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss = losses_of(network, step)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            look(watch, step)
    diagnosis = watch.diagnosis()
    assert watch.last is not None
    return {
        "findings": list(watch.findings),
        "diagnosis": None if diagnosis is None else diagnosis.as_dict(),
        "last": watch.last.step,
        "severity": watch.last.severity,
    }


@pytest.fixture
def none_are_held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which each step is evaluated at once."""
    screen = DetectorSet.screen
    return lambda: monkeypatch.setattr(
        DetectorSet, "screen", lambda self, loss, grad_norm: screen(self, loss, grad_norm) and False
    )


@pytest.mark.parametrize("more", [1, 2, 3, 7])
def test_what_the_last_steps_show_is_found(none_are_held: Callable[[], None], more: int) -> None:
    """A run may end at any step: findings, severity and causes are those of one by one; the batch is not known then."""
    results = watched(FOUND + more)
    none_are_held()
    expected = watched(FOUND + more)
    assert {**results, "diagnosis": None} == {**expected, "diagnosis": None}
    for diagnosis in (results["diagnosis"], expected["diagnosis"]):
        diagnosis["what"] = diagnosis["what"].replace(f" (batch {FOUND} of epoch 0)", "")
    assert results["diagnosis"] == expected["diagnosis"]
    assert [(finding.step, finding.sign) for finding in results["findings"]] == [(FOUND, "zero-gradient")]


def test_findings_that_are_read_during_the_run_are_complete() -> None:
    """A finding is there as soon as it is read after its step, although the step is held otherwise."""
    seen: list[int] = []

    def look(watch: GradientWatch, step: int) -> None:
        if watch.findings:
            seen.append(step)

    watched(FOUND + 3, look)
    assert seen == [FOUND, FOUND + 1, FOUND + 2]


def test_a_state_contains_the_steps_that_are_held(none_are_held: Callable[[], None]) -> None:
    """The state in a checkpoint of any calm step is that of a run in which each step is evaluated at once."""
    states: list[str] = []

    def look(watch: GradientWatch, step: int) -> None:
        if step > 80:
            states.append(repr(watch.state_dict()))

    watched(FOUND, look)
    none_are_held()
    watched(FOUND, look)
    half = len(states) // 2
    assert states[:half] == states[half:]


class Dying(pl.LightningModule):
    """Has no gradient from a step on, and raises some steps later."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        if batch_idx == FOUND + 2:
            raise ZeroDivisionError
        return losses_of(self.layer, batch_idx)

    def configure_optimizers(self) -> Any:
        """Return SGD."""
        return SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Any:
        """Return enough batches."""
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(FOUND + 10, 1)))


def test_an_exception_does_not_lose_what_is_held() -> None:
    """The finding of a step that is held is there after the exception that ended the run."""
    monitor = GradientExplosionMonitor(report=False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    with pytest.raises(ZeroDivisionError):
        trainer.fit(Dying())
    assert [(one.step, one.sign, one.severity) for one in monitor.findings] == [
        (FOUND, "zero-gradient", Severity.WARNING)
    ]
    assert monitor.diagnosis() is not None
