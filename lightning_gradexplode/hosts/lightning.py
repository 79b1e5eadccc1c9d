"""The adapter for Lightning's Trainer: its members that are used at each step and at the start of a run.

The modules ``lightning*`` are the only ones that import Lightning, and that use its private members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import ALONE, ProcessGroup
from lightning_gradexplode.distributed.rendezvous import join
from lightning_gradexplode.hosts.lightning_capabilities import LightningCapabilities
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
    """Replace weights, optimizers and schedulers in a checkpoint by the present ones; all processes call this."""
    strategy = trainer.strategy
    checkpoint["state_dict"] = strategy.lightning_module_state_dict()
    checkpoint["optimizer_states"] = [strategy.optimizer_state(one) for one in trainer.optimizers]
    checkpoint["lr_schedulers"] = [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs]


class LightningLoop(LightningClipping, LightningLogs, LightningCapabilities):
    """Lightning's Trainer during ``fit``, in automatic and manual optimization.

    Args:
        trainer: The trainer.
        callback: The monitor, which measures in ``on_after_backward`` where no other hook may change gradients later.
    """

    def __init__(self, trainer: Trainer, callback: Callback) -> None:
        LightningClipping.__init__(self, trainer)
        LightningLogs.__init__(self, trainer)
        LightningCapabilities.__init__(self, trainer)
        self.scaler = trainer.scaler
        self._module = trainer.lightning_module
        self._automatic = bool(self._module.automatic_optimization)
        self._epoch_loop = trainer.fit_loop.epoch_loop
        self._may_change_gradients = self._has_later_hooks(callback)
        self._published: dict[str, tuple[float, Tensor]] = {}

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
        """Whether the module steps by itself: in manual optimization, or in its ``optimizer_step``."""
        return self.may_clip_by_itself

    @property
    def clip_setting(self) -> tuple[float | None, str]:
        """The trainer's ``gradient_clip_val`` and ``gradient_clip_algorithm``."""
        value, algorithm = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        name = "norm" if algorithm is None else str(getattr(algorithm, "value", algorithm))
        return (float(value) if value else None), name

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Set values in ``trainer.callback_metrics``, which checkpoints and early stopping read."""
        # `Trainer.callback_metrics` first computes every metric of the module, which is too expensive at every step.
        connector = getattr(self.trainer, "_logger_connector", None)
        store = getattr(connector, "_callback_metrics", None)
        target = self.trainer.callback_metrics if store is None else store
        for name, value in metrics.items():
            last = self._published.get(name)
            if last is None or last[0] != value or target.get(name) is not last[1] or last[1]._version:
                # In float64, since a float32 of 1e60 would raise.
                target[name] = tensor = torch.scalar_tensor(value, dtype=torch.float64, device="cpu")
                self._published[name] = value, tensor

    def settings(self) -> Mapping[str, Any]:
        """Return precision, strategy and schedulers of the run."""
        return {
            "precision": str(self.trainer.precision),
            "strategy": type(self.trainer.strategy).__name__,
            "schedulers": tuple(type(one).__name__ for one in self.schedulers),
        }
