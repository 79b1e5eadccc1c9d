"""A checkpoint within an epoch, where several processes on accelerators have held what follows from the step before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.hosts.lightning import LightningLoop
from lightning_gradexplode.measure import reading
from tests.engine.test_deferred_steps import Mirror
from tests.runs.probe import QUIET
from tests.runs.test_deferred_responses import BAD, Halves, Normalized


class Saves(Normalized):
    """Saves a checkpoint after the batch of NaN, or in the forward pass of the next one.

    Args:
        path: Of the checkpoint.
        within_batch: Whether in the forward pass.
    """

    def __init__(self, path: Path, within_batch: bool) -> None:
        super().__init__(BAD)
        self.path, self.within_batch = path, within_batch
        self.before: list[Tensor] = []

    def _save(self) -> None:
        self.before = [one.detach().clone() for one in self.parameters()]
        self.trainer.save_checkpoint(self.path)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Save between the forward and the backward pass."""
        loss = super().training_step(batch, batch_idx)
        if self.within_batch and batch_idx == BAD + 1:
            self._save()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save after the monitor's own hook, as `ModelCheckpoint` does."""
        if not self.within_batch and batch_idx == BAD:
            self._save()


@pytest.mark.parametrize("within_batch", [False, True])
def test_a_checkpoint_has_what_follows_from_the_step_before(
    within_batch: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The finding, and the weights that a response has halved; within a batch, whose graph needs them, they stay."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(LightningLoop, "process_group", Mirror())
    arguments: dict[str, Any] = {"log_every_n_steps": 0, "histogram_every_n_steps": 0, "report": False}
    monitor = GradientExplosionMonitor(**arguments, on_explosion=Halves())
    module = Saves(tmp_path / "saved.ckpt", within_batch)
    pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False, callbacks=[monitor]).fit(module)
    assert not monitor.failed
    assert [one.step for one in monitor.findings if one.sign == "nonfinite-loss"] == [BAD]
    checkpoint = torch.load(module.path, weights_only=True)
    factor = 1.0 if within_batch else 0.5
    saved = [checkpoint["state_dict"][name] for name, _ in module.named_parameters()]
    for one, before in zip(saved, module.before, strict=True):
        assert torch.equal(one, before * factor)
    findings = checkpoint["callbacks"][monitor.state_key]["findings"]["state"]["findings"]
    assert bool(findings) != within_batch
