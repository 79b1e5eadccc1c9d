"""Training of a case, and its outcome, which is measured independently of the monitor."""

from __future__ import annotations

import importlib
import logging
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from torch.optim import Optimizer

from benchmarks.diagnosis.case import Case

for _name in ("replay", "experiments"):
    # Replays have more time than in a run, so that the results do not depend on the load of the machine.
    vars(importlib.import_module(f"lightning_gradexplode.diagnose.replay.{_name}"))["SECONDS"] = 120.0


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome of one run.

    Args:
        score: How bad the trained module is, NaN if its weights are not finite.
        fault: The first batch with a loss, gradient or weight that is not finite, None if there was none.
        losses: The loss of each backward pass.
        norms: L2 norm of the gradients of each optimizer step, before any clipping.
        seconds: Wall-clock time of the training.
    """

    score: float
    fault: int | None
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    seconds: float

    def is_good(self, case: type[Case]) -> bool:
        """Return whether the module is trained as well as the case expects of a cured run."""
        return self.score <= case.good

    def failed(self, case: type[Case]) -> bool:
        """Return whether a value was not finite during the run, or the trained module is bad."""
        return self.fault is not None or not self.is_good(case)


class Probe(Callback):
    """Records losses, gradient norms and the first batch with a value that is not finite."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.fault: int | None = None
        self.batches = 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Record the loss."""
        self.losses.append(float(loss.detach()))
        self._check(self.losses[-1])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Record the norm of the gradients."""
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        self.norms.append(math.sqrt(sum(float(one.detach().double().square().sum()) for one in gradients)))
        self._check(self.norms[-1])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Check the weights."""
        if not _finite(pl_module):
            self._check(math.nan)
        self.batches += 1

    def _check(self, value: float) -> None:
        if self.fault is None and not math.isfinite(value):
            self.fault = self.batches


def prepare(case: type[Case], changes: dict[str, Any]) -> Case:
    """Build a case with settings, from its seed."""
    torch.set_num_threads(1)
    seed_everything(case.seed, verbose=False)
    return case(**changes)


def train(module: Case, callbacks: Sequence[Callback] = (), **options: Any) -> Ending:
    """Train a case as it is.

    Args:
        module: The case.
        callbacks: Called before the probe.
        options: Arguments of the Trainer that replace the case's own.
    """
    probe = Probe()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            **{
                "max_steps": module.steps,
                "max_epochs": -1,
                "accelerator": "cpu",
                "devices": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "log_every_n_steps": 1,
                **module.options,
                **options,
                "callbacks": [*callbacks, probe],
            }
        )
        begin = time.perf_counter()
        trainer.fit(module, module.loader())
        seconds = time.perf_counter() - begin
        module.eval()
        with torch.no_grad():
            score = module.score() if _finite(module) else math.nan
    return Ending(score, probe.fault, tuple(probe.losses), tuple(probe.norms), seconds)


def _finite(module: LightningModule) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())
