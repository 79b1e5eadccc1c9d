"""After a fit nothing of the monitor is left in trainer and module, and nothing of them in the monitor."""

from __future__ import annotations

import copy
import gc
import pickle
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.engine.evidence import EvidenceCollector
from lightning_gradexplode.hosts.lightning_namespaces import Callback
from tests.runs.models import Batch, Regression
from tests.runs.probe import QUIET

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Build gradient descent."""
    return torch.optim.SGD(parameters, lr=0.05)


def hooks_of(module: nn.Module) -> int:
    """Count the hooks on a module and all that it holds."""
    return sum(len(getattr(one, name)) for one in module.modules() for name in HOOKS)


class Copying(Regression):
    """Copies and pickles its layers within ``training_step``, before and after the forward pass."""

    def __init__(self, nan_at: int | None = None) -> None:
        super().__init__(sgd)
        self.nan_at = nan_at
        self.copies: list[Any] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Copy, and return the loss."""
        self._copy()
        loss = self.loss(batch)
        self._copy()
        return loss * float("nan") if batch_idx == self.nan_at else loss

    def _copy(self) -> None:
        self.copies += [hooks_of(copy.deepcopy(self.layers)), hooks_of(pickle.loads(pickle.dumps(self.layers)))]


class Pickling(Callback):
    """Copies and pickles trainer, module and monitor after each batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Copy all of them."""
        for one in (pl_module, trainer, trainer.callbacks[0]):
            pickle.dumps(one)
            copy.deepcopy(one)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"clip": "auto", "on_explosion": ["skip", "rollback"]},
    {"log_every_n_steps": 1, "histogram_every_n_steps": 1, "on_explosion": "checkpoint"},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_copies_within_a_fit_are_clean(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Copies of layers have no hooks, and trainer, module and monitor pickle and copy at each batch and after it."""
    monitor = GradientExplosionMonitor(report=False, **arguments)
    module = Copying()
    trainer = pl.Trainer(**QUIET, logger=False, callbacks=[monitor, Pickling()], default_root_dir=tmp_path)
    precision = set(vars(trainer.precision_plugin))
    trainer.fit(module)
    assert not monitor.failed
    assert module.copies
    assert not any(module.copies)
    assert hooks_of(module) == 0
    assert set(vars(trainer.precision_plugin)) == precision
    for one in (module, trainer, monitor):
        pickle.dumps(one)
        copy.deepcopy(one)
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("nan_at", [None, 2])
def test_the_monitor_holds_neither_trainer_nor_module(
    nan_at: int | None, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """Both are released once the user lets go of them, after a calm fit and after one with an incident."""
    monitor = GradientExplosionMonitor(report=tmp_path, **arguments)
    module = Copying(nan_at)
    trainer = pl.Trainer(**QUIET, logger=False, callbacks=[monitor], default_root_dir=tmp_path)
    trainer.fit(module)
    held: list[Any] = [weakref.ref(trainer), weakref.ref(module)]
    del trainer, module
    gc.collect()
    assert [one() for one in held] == [None, None]
    assert monitor.last is not None
    assert monitor.exploded == (nan_at is not None)


def test_no_file_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States, reports and checkpoints are written to the run's own folder only."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monitor = GradientExplosionMonitor(report=tmp_path / "report", on_explosion=["checkpoint", "rollback"])
    root = tmp_path / "root"
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor], default_root_dir=root).fit(Copying(2))
    assert monitor.exploded
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not list(tmp_path.rglob("*.tmp"))


class Raising(Regression):
    """Raises in validation."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Raise."""
        raise ValueError("the user's own")

    def val_dataloader(self) -> Any:
        """Return the training data."""
        return self.train_dataloader()


def test_a_later_validation_leaves_the_clip_value(tmp_path: Path) -> None:
    """What the user sets after a fit stays, also if a validation raises."""
    monitor = GradientExplosionMonitor(report=False, clip=1.0)
    trainer: Any = pl.Trainer(**QUIET, logger=False, callbacks=[monitor], gradient_clip_val=0.7)
    trainer.fit(Regression())
    assert trainer.gradient_clip_val == 0.7
    trainer.gradient_clip_val = 0.3
    with pytest.raises(ValueError, match="the user's own"):
        trainer.validate(Raising())
    assert trainer.gradient_clip_val == 0.3


def test_a_fit_that_raises_in_validation_restores_the_clip_value() -> None:
    """The exception leaves the trainer as the user made it."""
    trainer: Any = pl.Trainer(**QUIET, logger=False, callbacks=[GradientExplosionMonitor(report=False, clip=1.0)])
    with pytest.raises(ValueError, match="the user's own"):
        trainer.fit(Raising())
    assert trainer.gradient_clip_val is None


def test_findings_stay_where_a_fit_goes_on_and_go_with_another_module(tmp_path: Path) -> None:
    """The same trainer and module add to the findings; another module begins without any."""
    monitor = GradientExplosionMonitor(report=False, diagnose=False, on_explosion="skip")
    trainer = pl.Trainer(**{**QUIET, "max_steps": -1}, max_epochs=1, logger=False, callbacks=[monitor])
    module = Copying(3)
    trainer.fit(module)
    first = [(finding.step, finding.sign) for finding in monitor.findings]
    assert first
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    assert [(finding.step, finding.sign) for finding in monitor.findings][: len(first)] == first
    assert monitor.diagnosis() is not None
    trainer.fit_loop.max_epochs = 3
    trainer.fit(Copying())
    assert not monitor.exploded
    assert monitor.diagnosis() is None


def test_a_tested_checkpoint_does_not_leak_into_the_next_fit(tmp_path: Path) -> None:
    """``test(ckpt_path=)`` loads the state of callbacks too, which belongs to no fit."""

    class Tested(Copying):
        def test_step(self, batch: Batch, batch_idx: int) -> None:
            """Do nothing."""

        def test_dataloader(self) -> Any:
            """Return the training data."""
            return self.train_dataloader()

    def trainer() -> Any:
        monitor = GradientExplosionMonitor(report=False, diagnose=False, on_explosion="skip")
        return pl.Trainer(**{**QUIET, "max_steps": 6}, logger=False, callbacks=[monitor], default_root_dir=tmp_path)

    exploded = trainer()
    exploded.fit(Tested(2))
    assert exploded.callbacks[0].exploded
    exploded.save_checkpoint(tmp_path / "saved.ckpt")
    calm = trainer()
    takes_choice = "weights_only" in pl.Trainer.test.__code__.co_varnames
    calm.test(Tested(), ckpt_path=tmp_path / "saved.ckpt", **({"weights_only": False} if takes_choice else {}))
    calm.fit(Tested())
    assert calm.callbacks[0].findings == []


@pytest.mark.parametrize("report", [True, "always"])
def test_a_fit_ends_as_usual_if_the_monitor_cannot_collect_its_evidence(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of the monitor itself leaves the results that it has, also when they are read at the end."""

    def evidence(*arguments: Any) -> Any:
        raise ValueError("broken on purpose")

    monkeypatch.setattr(EvidenceCollector, "evidence", evidence)
    monitor = GradientExplosionMonitor(report=report)
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor], default_root_dir=tmp_path).fit(Copying(2))
    assert monitor.failed
    assert monitor.exploded
    assert monitor.diagnosis() is None
