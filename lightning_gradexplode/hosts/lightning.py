"""The adapter for Lightning's Trainer: the only module that imports Lightning, and that knows its private members.

Lightning exists under two names, ``pytorch_lightning`` and ``lightning.pytorch``, with two unrelated `Callback`
classes; the class here inherits from every one that is installed, so that both trainers accept it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode import checks
from lightning_gradexplode.distributed.process_group import ALONE, Processes, ProcessGroup
from lightning_gradexplode.engine.accumulation import unscales_itself
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.logger_attributes import LoggerAttributes
from lightning_gradexplode.report import base_folder, public_name

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
    from pytorch_lightning.loggers import Logger
else:
    _bases = []
    _loggers = []
    for _namespace in ("pytorch_lightning", "lightning.pytorch"):
        with suppress(ModuleNotFoundError):
            _bases.append(importlib.import_module(_namespace).Callback)
            _loggers.append(importlib.import_module(f"{_namespace}.loggers").Logger)
    if not _bases:
        raise ModuleNotFoundError("lightning_gradexplode needs pytorch-lightning or lightning >= 2.4")
    Callback = type("Callback", tuple(_bases), {"__doc__": "The callback class of each installed Lightning."})
    Logger = type("Logger", tuple(_loggers), {"__doc__": "The logger class of each installed Lightning."})
    LightningModule = Trainer = Any

_NAMESPACES = ("pytorch_lightning.", "lightning.")

__all__ = ["Callback", "LightningLoop", "LightningModule", "Logger", "Trainer"]

logger = logging.getLogger("lightning_gradexplode")

_HIDING = {
    "FSDPStrategy": "keeps gradients in flat shards whose norms were never verified here; "
    "ModelParallelStrategy with fully_shard (FSDP2) is supported",
    "DeepSpeedStrategy": "keeps gradients where no hook sees them whole; DeepSpeed logs its own global norm",
}


def hidden_gradients(trainer: Trainer) -> str | None:
    """Return why the gradients of a run cannot be measured, since its strategy hides them; None where they can be."""
    names = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    return next((f"{name} {why}" for name, why in _HIDING.items() if name in names), None)


def runs_in_a_started_process(trainer: Trainer) -> bool:
    """Return whether the trainer has started this process, so that the user's own monitor is in another one."""
    return type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher"


class LightningLoop(TrainingLoop):
    """Lightning's Trainer during ``fit``, in automatic and manual optimization.

    Args:
        trainer: The trainer.
        callback: The monitor, which measures in ``on_after_backward`` where no other hook may change gradients later.
    """

    def __init__(self, trainer: Trainer, callback: Callback) -> None:
        self.trainer = trainer
        self._module = trainer.lightning_module
        self._automatic = bool(self._module.automatic_optimization)
        self._epoch_loop = trainer.fit_loop.epoch_loop
        self._clip_found = (trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        self._overrides_clipping = _is_overridden(self._module, "configure_gradient_clipping")
        self._may_change_gradients = self._has_later_hooks(callback)
        self._undo: list[Callable[[], None]] = []
        self._process_group = _process_group(trainer)
        self._attributes = LoggerAttributes()

    def _has_later_hooks(self, callback: Callback) -> bool:
        """Return whether another callback or the module has a hook in which it may change gradients later."""
        if _is_overridden(self._module, "on_after_backward", "on_before_optimizer_step"):
            return True
        others = [one for one in self.trainer.callbacks if one is not callback]
        return any(_is_overridden(one, "on_after_backward", "on_before_optimizer_step") for one in others)

    # The run.

    @property
    def module(self) -> nn.Module:
        """The LightningModule."""
        return self._module

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The trainer's optimizers."""
        optimizers: Sequence[Optimizer] = self.trainer.optimizers
        return optimizers

    @property
    def step(self) -> int:
        """The step of Lightning's own metrics: the number of batches that stepped. It is not ``global_step``."""
        return int(self._epoch_loop._batches_that_stepped)

    @property
    def epoch(self) -> int:
        """``trainer.current_epoch``."""
        return int(self.trainer.current_epoch)

    @property
    def batches_per_epoch(self) -> int | None:
        """``trainer.num_training_batches``, None if it is not finite."""
        count = self.trainer.num_training_batches
        return int(count) if count != float("inf") else None

    @property
    def is_last_batch(self) -> bool:
        """``trainer.is_last_batch``."""
        return bool(self.trainer.is_last_batch)

    @property
    def process_group(self) -> ProcessGroup:
        """The processes of the run, as far as they are joined by ``torch.distributed``."""
        return self._process_group

    @property
    def is_main_process(self) -> bool:
        """``trainer.is_global_zero``."""
        return bool(self.trainer.is_global_zero)

    # The optimizer's step.

    @property
    def is_automatic(self) -> bool:
        """Whether the module uses automatic optimization."""
        return self._automatic

    @property
    def micro_batches(self) -> int:
        """``trainer.accumulate_grad_batches``; Lightning divides a partial last window by it as well."""
        return int(self.trainer.accumulate_grad_batches)

    def completes_step(self, batch_idx: int) -> bool:
        """Return whether this batch is the last one of its accumulation window."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or bool(self.trainer.is_last_batch)

    def filled_share(self, batch_idx: int) -> float:
        """Return the share of the accumulation window that is filled with this batch."""
        size = int(self.trainer.accumulate_grad_batches)
        return (batch_idx % size + 1) / size

    def loss_scale(self) -> tuple[Tensor | None, bool]:
        """Return the scale of the precision plugin's gradient scaler, and whether it adapts."""
        scaler = self.trainer.scaler
        if scaler is None or not scaler.is_enabled():
            return None, False
        scale = getattr(scaler, "_scale", None)  # `GradScaler.get_scale` would wait for an accelerator
        return torch.tensor(scaler.get_scale()) if scale is None else scale, scaler.get_backoff_factor() < 1.0

    @property
    def gradients_are_final(self) -> bool:
        """Whether no other hook may change the gradients after ``on_after_backward``."""
        return self._automatic and not self._may_change_gradients

    @property
    def may_change_gradients(self) -> bool:
        """Whether another callback or the module has a hook in which it may change gradients, or clips by itself."""
        return self._may_change_gradients or self._overrides_clipping

    @property
    def may_step_unseen(self) -> bool:
        """Whether the module steps by itself: in manual optimization, or in its own ``optimizer_step``."""
        return not self._automatic or _is_overridden(self._module, "optimizer_step")

    # Clipping.

    @property
    def clip_setting(self) -> tuple[float | None, str]:
        """The trainer's ``gradient_clip_val`` and ``gradient_clip_algorithm``."""
        value, algorithm = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        name = "norm" if algorithm is None else str(getattr(algorithm, "value", algorithm))
        return (float(value) if value else None), name

    def set_clip(self, value: float | None, algorithm: str | None) -> None:
        """Assign the trainer's clip value and algorithm, which it reads after ``on_before_optimizer_step``."""
        self.trainer.gradient_clip_val = value
        self.trainer.gradient_clip_algorithm = None if algorithm is None else _clip_enum(self.trainer)(algorithm)

    def restore_clip(self) -> None:
        """Restore what the user gave to the trainer, and the precision plugin's own clipping."""
        self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm = self._clip_found
        for undo in self._undo:
            undo()
        self._undo = []

    def clips(self, optimizer: Optimizer) -> bool:
        """Return whether the trainer clips: not in manual optimization, and not where it would end the run."""
        refuses = unscales_itself(optimizer) and type(self.trainer.precision_plugin).__name__ == "MixedPrecision"
        return self._automatic and not self._overrides_clipping and not refuses

    @property
    def overrides_clipping(self) -> bool:
        """Whether the module has its own ``configure_gradient_clipping``."""
        return self._overrides_clipping

    def use_measured_norm(self, clip: Callable[[Optimizer, float], bool]) -> None:
        """Replace the norm clipping of the precision plugin, unless the plugin clips in a way of its own."""
        plugin = self.trainer.precision_plugin
        own = getattr(type(plugin).clip_grad_by_norm, "__qualname__", "")
        if own != "Precision.clip_grad_by_norm" or "clip_grad_by_norm" in vars(plugin):
            return

        def undo() -> None:
            vars(plugin).pop("clip_grad_by_norm", None)

        plugin.clip_grad_by_norm = _ClippingByMeasuredNorm(plugin.clip_grad_by_norm, clip, undo)
        self._undo.append(undo)

    # Output.

    @property
    def log_every_n_steps(self) -> int:
        """``trainer.log_every_n_steps``."""
        return int(self.trainer.log_every_n_steps)

    @property
    def loggers(self) -> Sequence[Any]:
        """``trainer.loggers``."""
        loggers: Sequence[Any] = self.trainer.loggers
        return loggers

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Set values in ``trainer.callback_metrics``, where checkpoints and early stopping look for them."""
        # `Trainer.callback_metrics` first computes every metric of the module, which is too expensive at every step.
        connector = getattr(self.trainer, "_logger_connector", None)
        store = getattr(connector, "_callback_metrics", None)
        target = self.trainer.callback_metrics if store is None else store
        for name, value in metrics.items():  # in float64, since a float32 of 1e60 would raise
            target[name] = torch.scalar_tensor(value, dtype=torch.float64, device="cpu")

    def logged_scalars(self) -> Mapping[str, Any]:
        """Return what the module logged in this ``training_step``, without computing any metric."""
        results = getattr(self._epoch_loop, "_results", None) or {}
        return dict(_logged(results))

    def log_folder(self) -> Path:
        """Return the folder that the first logger writes to, else the trainer's ``default_root_dir``.

        Raises:
            ValueError: It is a URL.
        """
        return checks.folder("the folder of the logs", self._log_dir())

    def _log_dir(self) -> str:
        """Return ``trainer.log_dir``, which a logger that raises on one process would make the others wait for."""
        first = next(iter(self.trainer.loggers), None)
        has_own = any(kind.__name__ in ("TensorBoardLogger", "CSVLogger") for kind in type(first).__mro__)
        own = self._attributes.folder(first, "log_dir" if has_own else "save_dir")
        folder: str = self.trainer.strategy.broadcast(own or str(self.trainer.default_root_dir))
        return folder.removeprefix("file://").removeprefix("file:")  # Lightning normalizes the one to the other

    def report_folder(self, report: Path | bool | Literal["always"]) -> Path | None:
        """Return the folder for reports: of the run's own folder where its logger gives it one."""
        folder = self._log_dir()  # on every process
        if "://" in folder and report in (True, "always"):
            logger.warning("gradexplode: reports are not written to %s; pass report= a local folder", folder)
            return None
        first = next(iter(self.trainer.loggers), None)
        has_own = self._attributes.folder(first, "log_dir") is not None  # not where runs share a folder, as in W&B
        own = Path(folder) if has_own else None
        return base_folder(report, own, Path(folder), self.run_id, datetime.now(timezone.utc))

    @property
    def run_name(self) -> str:
        """Name and version of the first logger."""
        first = next(iter(self.trainer.loggers), None)
        parts = [self._attributes.text(first, name) for name in ("name", "version")]
        return " ".join(public_name(part) for part in parts if part) or "run"

    @property
    def run_id(self) -> str | None:
        """The version of the first logger, if that is an identifier and not a mere number."""
        version = self._attributes.read(next(iter(self.trainer.loggers), None), "version")
        return version if isinstance(version, str) and not version.startswith("version_") else None

    def settings(self) -> Mapping[str, Any]:
        """Return precision, strategy and schedulers of the run."""
        trainer = self.trainer
        scale, adapts = self.loss_scale()
        return {
            "precision": str(trainer.precision),
            "scaler": "none" if scale is None else "adaptive" if adapts else "static",
            "strategy": type(trainer.strategy).__name__,
            "schedulers": tuple(type(one).__name__ for one in self.schedulers),
        }

    # Optional capabilities.

    @property
    def can_stop(self) -> bool:
        """Always."""
        return True

    def stop(self) -> None:
        """Set ``trainer.should_stop``."""
        self.trainer.should_stop = True

    @property
    def minimum_training(self) -> str:
        """``min_epochs`` or ``min_steps`` of the trainer, while they are not reached."""
        loop = self.trainer.fit_loop
        least = {"min_epochs": loop.min_epochs, "min_steps": loop.min_steps}
        return "" if loop._can_stop_early else " and ".join(f"{name}={value}" for name, value in least.items() if value)

    @property
    def schedulers(self) -> Sequence[Any]:
        """The learning rate schedulers of ``trainer.lr_scheduler_configs``."""
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    @property
    def scaler(self) -> Any:
        """The precision plugin's gradient scaler."""
        return self.trainer.scaler

    @property
    def averaged_modules(self) -> Mapping[str, nn.Module]:
        """Those of callbacks such as ``WeightAveraging`` and ``StochasticWeightAveraging``."""
        averages = {type(one).__name__: getattr(one, "_average_model", None) for one in self.trainer.callbacks}
        return {name: average for name, average in averages.items() if isinstance(average, nn.Module)}

    @property
    def weight_averages(self) -> Mapping[str, Sequence[Tensor]]:
        """The averages that callbacks such as ``WeightAveraging`` and ``StochasticWeightAveraging`` keep."""
        counts: dict[str, Any] = {type(one).__name__: getattr(one, "n_averaged", 0) for one in self.trainer.callbacks}
        return {
            name: [*one.parameters(), *one.buffers(), *filter(torch.is_tensor, [counts[name]])]
            for name, one in self.averaged_modules.items()
        }

    @property
    def can_save_checkpoints(self) -> bool:
        """Always."""
        return True

    def save_checkpoint(self, path: Path) -> None:
        """Save with ``trainer.save_checkpoint``."""
        try:
            self.trainer.save_checkpoint(path)
        except Exception:
            self.trainer.strategy.barrier("Trainer.save_checkpoint")  # in which the other processes wait
            raise

    def block_checkpoints(self) -> None:
        """Keep the trainer's ``ModelCheckpoint`` callbacks from saving until the next optimizer step."""
        for callback in self.trainer.checkpoint_callbacks:
            # This makes them take the step for one whose checkpoint was written already.
            if hasattr(callback, "_last_global_step_saved"):
                callback._last_global_step_saved = self.trainer.global_step

    @property
    def data_loader(self) -> Any:
        """The training data loader."""
        return self.trainer.train_dataloader

    @property
    def can_replay(self) -> bool:
        """Whether ``training_step`` can be called with a batch: not where it takes an iterator."""
        return not _takes_iterator(self._module)

    def replay_loss(self, copy: Any, batch: Any, batch_idx: int) -> Any:
        """Call the copy's ``training_step``."""
        return copy.training_step(*_step_arguments(copy, batch, batch_idx))

    def replay_context(self) -> AbstractContextManager[Any]:
        """Return the precision plugin's context of a training step."""
        context: AbstractContextManager[Any] = self.trainer.precision_plugin.train_step_context()
        return context


class _ClippingByMeasuredNorm:
    """A precision plugin's norm clipping, by a norm that was measured already; in a copy of the plugin, its own."""

    def __init__(
        self,
        original: Callable[[Optimizer, float], None],
        clip: Callable[[Optimizer, float], bool],
        undo: Callable[[], None],
    ) -> None:
        self._original = original
        self._clip = clip
        self._undo = undo

    def __call__(self, optimizer: Optimizer, clip_val: float) -> None:
        try:
            clipped = self._clip(getattr(optimizer, "optimizer", optimizer), clip_val)
        except Exception:
            logger.exception("gradexplode: the measured norm could not be used; the trainer clips by itself")
            self._undo()
            clipped = False
        if not clipped:
            self._original(optimizer, clip_val)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unchanged, (self._original,)


def _unchanged(value: Any) -> Any:
    return value


def _logged(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and latest value of each plain scalar in Lightning's results of this step."""
    for result in results.values():
        meta = getattr(result, "meta", None)
        value = getattr(result, "_forward_cache", None)
        is_scalar = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
        if meta is not None and is_scalar and getattr(result, "is_tensor", True) is not False:
            yield meta.name, value


def _takes_iterator(module: Any) -> bool:
    names = getattr(getattr(module.training_step, "__code__", None), "co_varnames", ())
    return "dataloader_iter" in names


def _step_arguments(module: Any, batch: Any, batch_idx: int) -> list[Any]:
    code = getattr(module.training_step, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ("self", "batch", "batch_idx")
    return [batch, batch_idx] if "batch_idx" in names or len(names) > 2 else [batch]


def _process_group(trainer: Trainer) -> ProcessGroup:
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return ALONE
    return Processes(torch.distributed.get_world_size(), trainer.strategy.root_device)


def _is_overridden(owner: Any, *names: str) -> bool:
    """Return whether any of these hooks is not Lightning's own."""
    return any(not getattr(type(owner), name).__module__.startswith(_NAMESPACES) for name in names)


def _clip_enum(trainer: Trainer) -> Any:
    """Return the enumeration of clip algorithms of the Lightning that this trainer, or its base class, belongs to."""
    module = next(kind.__module__ for kind in type(trainer).__mro__ if kind.__module__.endswith(".trainer.trainer"))
    namespace = module.removesuffix(".trainer.trainer")
    return importlib.import_module(f"{namespace}.utilities.enums").GradClipAlgorithmType
