"""An independent probe: plain float64 loops over the gradients that each optimizer receives and over its changes."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode import GradientExplosionMonitor, StepRecord
from lightning_gradexplode.hosts.lightning_namespaces import Callback
from lightning_gradexplode.testing import RecordingLogger

EDGES = np.array([m * 2.0**e for e in range(-126, 128) for m in (1.0, 1.25, 1.5, 1.75)] + [math.inf])
"""The borders of the buckets above zero: four to an octave, as the documentation of `Histogram` has them."""


@dataclass(eq=False)
class Truth:
    """One optimizer step, as the probe has seen it, by parameter name."""

    optimizer: Optimizer
    scale: float
    gradients: dict[str, Tensor | None]
    before: dict[str, Tensor]
    batch: int = 0
    after: dict[str, Tensor] = field(default_factory=dict)

    @property
    def stepped(self) -> bool:
        """Whether the optimizer's step took place; a gradient scaler leaves it out after an overflow."""
        return bool(self.after)


class Probe(Callback):
    """Placed behind the monitor; keeps a `Truth` for each optimizer step, and the monitor's record of each batch.

    Args:
        monitor: Whose records are kept; None if only the truth is wanted.
        scaled: Whether gradients are still multiplied by the gradient scaler's scale before the step.
    """

    def __init__(self, monitor: GradientExplosionMonitor | None = None, scaled: bool = False) -> None:
        super().__init__()
        self.monitor = monitor
        self.scaled = scaled
        self.truths: list[Truth] = []
        self.records: list[StepRecord] = []
        self._handles: list[Any] = []
        self._batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the end of each step."""
        self._handles = [one.register_step_post_hook(self._stepped) for one in trainer.optimizers]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Copy gradients and weights; a line search's further evaluations of the same step are not the step's."""
        raw = getattr(optimizer, "optimizer", optimizer)
        if self.truths and isinstance(raw, torch.optim.LBFGS) and not self.truths[-1].stepped:
            return
        owned = {id(p) for group in raw.param_groups for p in group["params"]}
        named = {name: p for name, p in pl_module.named_parameters() if id(p) in owned}
        scale = float(trainer.scaler.get_scale()) if self.scaled and trainer.scaler is not None else 1.0
        self.truths.append(
            Truth(
                raw,
                scale,
                {name: None if p.grad is None else p.grad.detach().clone() for name, p in named.items()},
                {name: p.detach().clone() for name, p in named.items()},
                self._batches,
            )
        )
        self._named = named

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.truths and self.truths[-1].optimizer is optimizer and not self.truths[-1].stepped:
            self.truths[-1].after = {name: p.detach().clone() for name, p in self._named.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Keep the monitor's record, if there is a new one."""
        self._batches += 1
        last = self.monitor.last if self.monitor is not None else None
        if last is not None and (not self.records or self.records[-1] is not last):
            self.records.append(last)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()


def elements(tensor: Tensor | None) -> list[float]:
    """List a tensor's elements, of complex ones the absolute values, and sparse ones' duplicates added up."""
    if tensor is None:
        return []
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    wide = dense.to(torch.complex128).abs() if dense.is_complex() else dense.double()
    flat: list[float] = wide.reshape(-1).tolist()
    return flat


def norm(*tensors: Tensor | None, scale: float = 1.0) -> float:
    """Return the L2 norm of all elements of all tensors by a plain loop; NaN wins over infinity."""
    values = [abs(value) / scale for tensor in tensors for value in elements(tensor)]
    if any(math.isnan(value) for value in values):
        return math.nan
    return math.hypot(*values)


def largest(*tensors: Tensor | None, scale: float = 1.0) -> float:
    """Return the largest absolute value; NaN wins over all."""
    values = [abs(value) / scale for tensor in tensors for value in elements(tensor)]
    return math.nan if any(math.isnan(value) for value in values) else max(values, default=0.0)


def parts(tensor: Tensor | None) -> list[float]:
    """List the real numbers of which a tensor consists: real and imaginary parts apart, only the stored sparse ones."""
    if tensor is None:
        return []
    if tensor.layout is not torch.strided:
        tensor = tensor.coalesce().values()
    return elements(torch.view_as_real(tensor) if tensor.is_complex() else tensor)


def nonfinite(tensor: Tensor | None) -> int:
    """Count NaN and infinite numbers."""
    return sum(not math.isfinite(part) for part in parts(tensor))


def counts(tensor: Tensor | None, scale: float = 1.0) -> list[int]:
    """Count a tensor's finite numbers into the 2033 buckets of `Histogram`."""
    result = [0] * 2033
    for part in parts(tensor):
        value = part / scale
        if math.isfinite(value):
            place = int(np.searchsorted(EDGES, abs(value), side="right"))
            result[1016 + (place if value > 0 else -place)] += 1
    return result


class Watched:
    """A run with the monitor, a recording logger and the probe behind it.

    Args:
        module: What is trained.
        scaled: See `Probe`.
        monitor: Arguments of the monitor.
        trainer: Arguments of the trainer.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        *,
        scaled: bool = False,
        monitor: dict[str, Any] | None = None,
        callbacks: Any = (),
        callbacks_behind: Any = (),
        ckpt_path: str | None = None,
        trainer_class: Any = pl.Trainer,
        **trainer: Any,
    ) -> None:
        settings = {"log_every_n_steps": 1, "histogram_every_n_steps": 1, "per_parameter": True, "report": False}
        self.monitor = GradientExplosionMonitor(**{**settings, **(monitor or {})})
        self.probe = Probe(self.monitor, scaled)
        self.logger = RecordingLogger()
        self.module = module
        everyone = [*callbacks, self.monitor, self.probe, *callbacks_behind]
        self.trainer = trainer_class(**{**QUIET, "logger": self.logger, **trainer}, callbacks=everyone)
        self.trainer.fit(module, **resuming(ckpt_path))

    @property
    def logged(self) -> list[dict[str, float]]:
        """The monitor's scalars, one dictionary for each optimizer step."""
        return [metrics for _, metrics in self.logger.metrics if "gradexplode/grad_norm" in metrics]


def resuming(ckpt_path: str | None) -> dict[str, Any]:
    """Return the arguments of ``fit`` for a checkpoint of ours, which holds optimizers; Lightning 2.4 takes any."""
    takes_choice = "weights_only" in inspect.signature(pl.Trainer.fit).parameters
    return {"ckpt_path": ckpt_path, **({"weights_only": False} if ckpt_path and takes_choice else {})}


counts_steps_after_a_resume = pytest.mark.skipif(
    tuple(int(part) for part in version("pytorch-lightning").split(".")[:2]) < (2, 5),
    reason="Lightning 2.4 logs one step less after a resume within an epoch",
)

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_steps": 5,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
"""Arguments of a trainer that is small and says nothing."""
