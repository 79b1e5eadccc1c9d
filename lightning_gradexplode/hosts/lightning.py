"""The only module that imports Lightning, and that knows what is private in it.

Lightning exists under two names, ``pytorch_lightning`` and ``lightning.pytorch``, with two unrelated `Callback`
classes; the class here inherits from every one that is installed, so that both trainers take it. Nothing here is
remembered between calls.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import ALONE, Processes, ProcessGroup

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

__all__ = ["Callback", "LightningModule", "Logger", "Trainer"]


def logging_step(trainer: Trainer) -> int:
    """Give the step that Lightning logs this batch's metrics at: batches that stepped, from 0."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_interval(trainer: Trainer) -> int:
    """Give the number of steps from one of the trainer's own logs to the next; 0 for never."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


_HIDING = {
    "FSDPStrategy": "keeps gradients in flat shards whose norms were never verified here; "
    "ModelParallelStrategy with fully_shard (FSDP2) is supported",
    "DeepSpeedStrategy": "keeps gradients where no hook sees them whole; DeepSpeed logs its own global norm",
}


def hidden_gradients(trainer: Trainer) -> str | None:
    """Tell why the gradients of a run cannot be measured rightly: its strategy hides them. None where they can be."""
    names = [kind.__name__ for kind in type(trainer.strategy).__mro__]
    return next((f"{name} {why}" for name, why in _HIDING.items() if name in names), None)


def runs_in_a_started_process(trainer: Trainer) -> bool:
    """Tell whether the trainer has started this process, so that the user's own monitor is in another one."""
    return type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher"


def is_automatic(trainer: Trainer) -> bool:
    """Tell whether Lightning runs backward and the optimizer itself."""
    return bool(trainer.lightning_module.automatic_optimization)


def closes_window(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether this batch is the last one whose gradients go into the coming optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or bool(trainer.is_last_batch)


def ends_epoch(trainer: Trainer) -> bool:
    """Tell whether this batch is the last one of its epoch."""
    return bool(trainer.is_last_batch)


def filled_window(trainer: Trainer, batch_idx: int) -> float:
    """Give the share of an accumulation window that is filled with this batch; below 1 only at the end of an epoch."""
    size = int(trainer.accumulate_grad_batches)
    return (batch_idx % size + 1) / size


def save_nothing_now(trainer: Trainer) -> None:
    """Keep the trainer's ``ModelCheckpoint`` callbacks from saving until the next optimizer step."""
    for callback in trainer.checkpoint_callbacks:
        # To them this step is then one whose checkpoint was written already.
        if hasattr(callback, "_last_global_step_saved"):
            callback._last_global_step_saved = trainer.global_step


def loss_scale(trainer: Trainer) -> tuple[Tensor | None, bool]:
    """Give the scale of the AMP gradient scaler in force (None without one), and whether it adapts to overflows.

    The scale is a tensor of one element, and not read from the device here.
    """
    scaler = trainer.scaler
    if scaler is None or not scaler.is_enabled():
        return None, False
    scale = getattr(scaler, "_scale", None)  # `GradScaler.get_scale` would stop an accelerator
    return torch.tensor(scaler.get_scale()) if scale is None else scale, scaler.get_backoff_factor() < 1.0


def unscales_itself(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer divides by the AMP scale in its step; hooks before it then see scaled gradients."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def refuses_to_clip(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Tell whether the trainer ends the run if it is to clip for an optimizer: a fused one under mixed precision."""
    return unscales_itself(optimizer) and type(trainer.precision_plugin).__name__ == "MixedPrecision"


def gradients_stay(trainer: Trainer, callback: Callback) -> bool:
    """Tell whether the optimizer will get the gradients just as a callback sees them in ``on_after_backward``.

    Args:
        trainer: The trainer of the run.
        callback: What measures in ``on_after_backward``.

    Returns:
        False if another callback or the module has a hook in between, in which it may edit them.
    """
    if _has_hook(trainer.lightning_module, "on_after_backward"):
        return False
    others = [one for one in trainer.callbacks if one is not callback]  # type: ignore[attr-defined]
    return not any(_has_hook(one, name) for one in others for name in ("on_after_backward", "on_before_optimizer_step"))


def _has_hook(owner: Any, name: str) -> bool:
    hook = getattr(type(owner), name)
    return not hook.__module__.startswith(_NAMESPACES)


def returned_loss(outputs: Any) -> Tensor | None:
    """Find the loss in what a training_step gave to ``on_train_batch_end``; None if there is none."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else None


def log_directory(trainer: Trainer) -> Path:
    """Give the folder that the first logger writes to, or else the trainer's own. Call it on every process."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def report_folder(trainer: Trainer, report: Path | bool) -> Path | None:
    """Give the folder for reports, None if none are wanted; to be asked on every process."""
    if isinstance(report, Path):
        return report
    return log_directory(trainer) / "gradexplode" if report else None


def publish_callback_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Put values into ``trainer.callback_metrics``, where checkpoints and early stopping look for what they monitor."""
    # `Trainer.callback_metrics` first evaluates every metric of the module, which is too dear for every step.
    connector = getattr(trainer, "_logger_connector", None)
    store = getattr(connector, "_callback_metrics", None)
    target = trainer.callback_metrics if store is None else store
    # In float64: a float32 of 1e60 would raise, and the very explosion end the monitor.
    target.update(
        {name: torch.scalar_tensor(value, dtype=torch.float64, device="cpu") for name, value in metrics.items()}
    )


def world(trainer: Trainer) -> ProcessGroup:
    """Give the processes of a run, as far as they are joined by ``torch.distributed``."""
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return ALONE
    return Processes(torch.distributed.get_world_size(), trainer.strategy.root_device)


def set_clipping(trainer: Trainer, value: float | None, algorithm: str | None) -> None:
    """Set what the trainer will clip the coming step's gradients by.

    Args:
        trainer: What clips.
        value: The threshold; None for no clipping.
        algorithm: ``"norm"`` or ``"value"``; None leaves Lightning's default, by norm.
    """
    trainer.gradient_clip_val = value
    trainer.gradient_clip_algorithm = None if algorithm is None else _clip_enum(trainer)(algorithm)


def clipping(trainer: Trainer) -> tuple[float | None, str]:
    """Give the trainer's clip value (None where it clips nothing) and its algorithm's name."""
    value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
    name = "norm" if algorithm is None else str(getattr(algorithm, "value", algorithm))
    return (float(value) if value else None), name


def replace_norm_clipping(trainer: Trainer, clip: Callable[[Optimizer, float], bool]) -> Callable[[], None]:
    """Have something else asked before the trainer's precision plugin clips an optimizer's gradients by norm.

    Args:
        trainer: What clips.
        clip: Gets the optimizer and the clip value, and tells whether it has done what the plugin would do.

    Returns:
        What puts the plugin back as it was. A plugin that clips in a way of its own is left alone.
    """
    plugin = trainer.precision_plugin
    own = getattr(type(plugin).clip_grad_by_norm, "__qualname__", "")
    if own != "Precision.clip_grad_by_norm" or "clip_grad_by_norm" in vars(plugin):
        return lambda: None
    original = plugin.clip_grad_by_norm

    def asked(optimizer: Optimizer, clip_val: float) -> None:
        if not clip(getattr(optimizer, "optimizer", optimizer), clip_val):
            original(optimizer, clip_val)

    plugin.clip_grad_by_norm = asked  # type: ignore[method-assign]
    return lambda: vars(plugin).pop("clip_grad_by_norm", None) and None


def overrides_clipping(trainer: Trainer) -> bool:
    """Tell whether the user's module clips in its own way."""
    return _has_hook(trainer.lightning_module, "configure_gradient_clipping")


def _clip_enum(trainer: Trainer) -> Any:
    """Find the clip algorithms' enumeration of the Lightning that this trainer, or the class it extends, belongs to."""
    module = next(kind.__module__ for kind in type(trainer).__mro__ if kind.__module__.endswith(".trainer.trainer"))
    namespace = module.removesuffix(".trainer.trainer")
    return importlib.import_module(f"{namespace}.utilities.enums").GradClipAlgorithmType
