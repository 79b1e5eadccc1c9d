"""The optional capabilities of Lightning's Trainer: stopping, checkpoints, averages, and computing a step again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.lightning_namespaces import Trainer


class LightningCapabilities(TrainingLoop):
    """The part of the adapter with the optional capabilities of a training loop.

    Args:
        trainer: The trainer.
    """

    can_stop = can_save_checkpoints = True

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

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
            # With this the callbacks assume that the checkpoint of the step was written already.
            if hasattr(callback, "_last_global_step_saved"):
                callback._last_global_step_saved = self.trainer.global_step

    @property
    def data_loader(self) -> Any:
        """The training data loader."""
        return self.trainer.train_dataloader

    @property
    def can_replay(self) -> bool:
        """Whether ``training_step`` can be called with a batch: not where it takes an iterator."""
        return not _takes_iterator(self.module)

    def replay_loss(self, copy: Any, batch: Any, batch_idx: int) -> Any:
        """Call the copy's ``training_step``."""
        return copy.training_step(*_step_arguments(copy, batch, batch_idx))

    def replay_context(self) -> AbstractContextManager[Any]:
        """Return the precision plugin's context of a training step."""
        context: AbstractContextManager[Any] = self.trainer.precision_plugin.train_step_context()
        return context


def _takes_iterator(module: Any) -> bool:
    return "dataloader_iter" in _signature(module).args


def _step_arguments(module: Any, batch: Any, batch_idx: int) -> list[Any]:
    """Return what Lightning passes to ``training_step``, which need not take the index of the batch."""
    signature = _signature(module)
    takes_index = "batch_idx" in signature.args or len(signature.args) > 2 or signature.varargs is not None
    return [batch, batch_idx] if takes_index else [batch]


def _signature(module: Any) -> inspect.FullArgSpec:
    """Return the arguments of ``training_step``, ``self`` among them; within a decorator those of the method itself."""
    return inspect.getfullargspec(getattr(module.training_step, "__wrapped__", module.training_step))
