"""The adapter for Lightning's Trainer.

The modules ``lightning*`` are the only ones that import Lightning, and that use its private members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import ALONE, ProcessGroup
from lightning_gradexplode.distributed.rendezvous import join
from lightning_gradexplode.hosts.lightning_clipping import LightningClipping
from lightning_gradexplode.hosts.lightning_logs import LightningLogs
from lightning_gradexplode.hosts.lightning_namespaces import Callback, Trainer, is_overridden

_UNSUPPORTED = {
    "FSDPStrategy": "FSDPStrategy keeps gradients in flat shards; use ModelParallelStrategy with fully_shard (FSDP2)",
    "DeepSpeedStrategy": "DeepSpeedStrategy partitions gradients before hooks are called; it logs its own global norm",
}
"""Strategies whose gradients cannot be measured, and why."""


def unsupported_strategy(trainer: Trainer) -> str | None:
    """Return why the gradients of a run cannot be measured with its strategy; None if they can."""
    names = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    return next((why for name, why in _UNSUPPORTED.items() if name in names), None)


def runs_in_a_started_process(trainer: Trainer) -> bool:
    """Return whether the trainer has started this process, so that the user's own monitor is in another one."""
    return type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher"


def save_again(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Replace in a checkpoint what a response may have changed since it was put there; all processes call this."""
    strategy = trainer.strategy
    checkpoint["state_dict"] = strategy.lightning_module_state_dict()
    checkpoint["optimizer_states"] = [strategy.optimizer_state(one) for one in trainer.optimizers]
    checkpoint["lr_schedulers"] = [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs]


class LightningLoop(LightningClipping, LightningLogs):
    """Lightning's Trainer during ``fit``, in automatic and manual optimization.

    Args:
        trainer: The trainer.
        callback: The monitor, which measures in ``on_after_backward`` where no other hook may change gradients later.
    """

    def __init__(self, trainer: Trainer, callback: Callback) -> None:
        LightningClipping.__init__(self, trainer)
        LightningLogs.__init__(self, trainer)
        self._module = trainer.lightning_module
        self._automatic = bool(self._module.automatic_optimization)
        self._epoch_loop = trainer.fit_loop.epoch_loop
        self._may_change_gradients = self._has_later_hooks(callback)

    def _has_later_hooks(self, callback: Callback) -> bool:
        """Return whether another callback or the module has a hook in which it may change gradients later."""
        if is_overridden(self._module, "on_after_backward", "on_before_optimizer_step"):
            return True
        others = [one for one in self.trainer.callbacks if one is not callback]
        return any(is_overridden(one, "on_after_backward", "on_before_optimizer_step") for one in others)

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

    @cached_property
    def process_group(self) -> ProcessGroup:
        """The processes of the run, as far as they are joined by ``torch.distributed`` and have a monitor."""
        if self.trainer.world_size == 1:
            return ALONE
        return join(self._module, self.trainer.strategy.root_device)

    @property
    def gradients_may_differ(self) -> bool:
        """Whether a communication hook reduces gradients, which need not be equal on all processes then."""
        return bool(getattr(self.trainer.strategy.model, "_comm_hooks", None))

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
        return self._may_change_gradients or self.overrides_clipping

    @property
    def may_clip_by_itself(self) -> bool:
        """Whether the module steps, and may clip, by itself: in manual optimization, or in its ``optimizer_step``."""
        return not self._automatic or is_overridden(self._module, "optimizer_step")

    @property
    def may_step_unseen(self) -> bool:
        """The same."""
        return self.may_clip_by_itself

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


def _takes_iterator(module: Any) -> bool:
    names = getattr(getattr(module.training_step, "__code__", None), "co_varnames", ())
    return "dataloader_iter" in names


def _step_arguments(module: Any, batch: Any, batch_idx: int) -> list[Any]:
    code = getattr(module.training_step, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ("self", "batch", "batch_idx")
    return [batch, batch_idx] if "batch_idx" in names or len(names) > 2 else [batch]
