"""What the engine needs from a training loop.

An adapter for a training loop is a subclass of `TrainingLoop`. It implements `module`, `optimizers` and `step`, and
those other members that its loop supports. Their defaults are those of a plain loop in one process, without
accumulation, clipping, loggers, checkpoints or a way to stop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.distributed.process_group import ALONE, ProcessGroup


class TrainingLoop(ABC):
    """The interface between the engine and a training loop.

    Attributes:
        trainer: The object that a user's `Response` finds as ``run.trainer``; None where there is none.
        loss_factor: What the loop multiplies the first loss by for its backward pass, without the scale of a gradient
            scaler; None if that is not known.
        moves_weights: Whether the loop itself writes to the weights between the backward pass of a loss and the first
            step; None if that is not known.
        scaler: The gradient scaler, None without one.
    """

    trainer: Any = None
    loss_factor: float | None = None
    moves_weights: bool | None = None
    scaler: Any = None

    # The run.

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The network that is trained, without the wrappers of a strategy."""

    @property
    @abstractmethod
    def optimizers(self) -> Sequence[Optimizer]:
        """The optimizers at this moment; a loop may replace them during a run."""

    @property
    @abstractmethod
    def step(self) -> int:
        """The step that other metrics of the current batch are logged at, from `first_step`."""

    @property
    def first_step(self) -> int:
        """The number of the first step of a run in the loop's own logs: 0 or 1."""
        return 0

    @property
    def epoch(self) -> int:
        """Index of the current epoch."""
        return 0

    @property
    def batches_per_epoch(self) -> int | None:
        """Number of batches of an epoch, None if unknown."""
        return None

    @property
    def is_last_batch(self) -> bool:
        """Whether the current batch is the last one of its epoch."""
        return False

    @property
    def process_group(self) -> ProcessGroup:
        """The processes of the run."""
        return ALONE

    @property
    def gradients_may_differ(self) -> bool:
        """Whether the processes may get other gradients than one another although they hold the same parameters."""
        return False

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes logs and reports: global rank zero."""
        return True

    def settings(self) -> Mapping[str, Any]:
        """Return the fields of `lightning_gradexplode.records.RunFacts` that depend on the training loop."""
        return {}

    @property
    def is_compiled(self) -> bool:
        """Whether the network is called through ``torch.compile``, which hooks of its modules would disturb."""
        return False

    # The optimizer's step.

    @property
    def is_automatic(self) -> bool:
        """Whether the loop itself calls backward and the optimizer, for one optimizer, as automatic optimization."""
        return True

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches that the loop divides each loss by, for one optimizer step."""
        return 1

    def completes_step(self, batch_idx: int) -> bool:
        """Return whether the gradients of this batch are the last ones that go into the coming optimizer step."""
        return True

    def filled_share(self, batch_idx: int) -> float:
        """Return the share of `micro_batches` that the coming step has; below 1 only at the end of an epoch."""
        return 1.0

    def loss_scale(self) -> tuple[Tensor | None, bool]:
        """Return the scale of the gradient scaler in force (None without one) and whether it adapts to overflows.

        The scale is a tensor of one element, which is not read from its device here.
        """
        scaler = self.scaler
        if scaler is None or not scaler.is_enabled():
            return None, False
        scale = getattr(scaler, "_scale", None)  # `GradScaler.get_scale` would wait for an accelerator
        scale = torch.tensor(scaler.get_scale(), device="cpu") if scale is None else scale
        return scale, scaler.get_backoff_factor() < 1.0

    @property
    def gradients_are_final(self) -> bool:
        """Whether the optimizer gets the gradients exactly as they are at the end of the backward pass."""
        return False

    @property
    def counts_end_of_backward(self) -> bool:
        """Whether the measurement at the end of the last backward pass is used, whatever the user's code does later.

        True where the user's code clips between the backward pass and the optimizer's step, and it is not known which
        backward pass is the last one before the step.
        """
        return False

    @property
    def may_change_gradients(self) -> bool:
        """Whether the user's own code may change gradients between the measurement and the optimizer's step."""
        return False

    @property
    def may_clip_by_itself(self) -> bool:
        """Whether the user's own code may clip the gradients after the backward pass, before the loop calls the engine.

        They are measured at the end of the backward pass then; if they are smaller later, they have been clipped.
        """
        return not self.is_automatic or self.counts_end_of_backward

    @property
    def may_step_unseen(self) -> bool:
        """Whether the user's own code changes the weights, and not only by the loop's `optimizers`."""
        return not self.is_automatic

    @property
    def removes_gradients(self) -> bool:
        """Whether the loop itself removes all gradients before the step, as where it has been told to stop."""
        return False

    # Clipping by the loop itself.

    @property
    def clip_setting(self) -> tuple[float | None, str]:
        """The loop's clip value (None where it does not clip) and its algorithm, ``"norm"`` or ``"value"``."""
        return None, "norm"

    def set_clip(self, value: float | None, algorithm: str | None) -> None:
        """Set what the loop clips the coming step's gradients by; only called where `clips` returns True."""
        raise NotImplementedError

    def restore_clip(self) -> None:
        """Restore the clip setting that was in force before the first `set_clip`."""

    def clips(self, optimizer: Optimizer) -> bool:
        """Return whether the loop clips an optimizer's gradients by a value that is set with `set_clip`."""
        return False

    @property
    def overrides_clipping(self) -> bool:
        """Whether the user's module clips in a way of its own."""
        return False

    def use_measured_norm(self, clip: Callable[[Optimizer, float], bool]) -> None:
        """Use the measured norm wherever the loop clips by norm, until `restore_clip`.

        Args:
            clip: Called with the optimizer and the clip value in place of the loop's own clipping; where it returns
                False, the loop has to clip by itself.
        """

    # Output.

    @property
    def log_every_n_steps(self) -> int:
        """Number of steps from one of the loop's own logs to the next; 0 for never."""
        return 50

    @property
    def loggers(self) -> Sequence[Any]:
        """The loggers of the run."""
        return ()

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Publish metrics to the loop's other callbacks, such as early stopping."""

    def logged_scalars(self) -> Mapping[str, Any]:
        """Return the scalars that the user's module logged in this batch: numbers, or tensors of one element."""
        return {}

    def returned_loss(self, outputs: Any) -> Tensor | None:
        """Return the loss in what a training step returned, without its history; None if there is none."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        return loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else None

    def log_folder(self) -> Path:
        """Return the folder of the run's logs. Called on every process."""
        return Path.cwd()

    def report_folder(self, report: Path | bool | Literal["always"]) -> Path | None:
        """Return the folder for reports, None if none are wanted. Called on every process.

        Args:
            report: The monitor's argument of that name.
        """
        if isinstance(report, Path):
            return report
        return self.log_folder() / "gradexplode" if report else None

    @property
    def run_name(self) -> str:
        """Name of the run, as its logger shows it; never a path."""
        return "run"

    @property
    def run_id(self) -> str | None:
        """Identifier of the run in its logger, by which a resumed run is recognized; None if it has none."""
        return None

    # Optional capabilities.

    @property
    def can_stop(self) -> bool:
        """Whether `stop` ends the training."""
        return False

    def stop(self) -> None:
        """End the training after the current batch."""

    @property
    def minimum_training(self) -> str:
        """The settings for which the loop continues after `stop`, for example ``"min_epochs=5"``; empty without any."""
        return ""

    @property
    def schedulers(self) -> Sequence[Any]:
        """The learning rate schedulers at this moment."""
        return ()

    @property
    def averaged_modules(self) -> Mapping[str, nn.Module]:
        """Modules whose weights and buffers are averages of those of the module, by the name of their owner."""
        return {}

    @property
    def weight_averages(self) -> Mapping[str, Sequence[Tensor]]:
        """Tensors of the averages of the weights (EMA, SWA), by the name of their owner.

        A rollback restores them together with the weights, since a loop may copy them into the model at its end.
        """
        return {}

    @property
    def can_save_checkpoints(self) -> bool:
        """Whether `save_checkpoint` works."""
        return False

    def save_checkpoint(self, path: Path) -> None:
        """Save a checkpoint of the run as it is now. Called on every process."""
        raise NotImplementedError

    def block_checkpoints(self) -> None:
        """Prevent the loop's own checkpoint callbacks from saving until the next optimizer step."""

    @property
    def data_loader(self) -> Any:
        """The data loader that batches come from, None if unknown."""
        return None

    @property
    def can_replay(self) -> bool:
        """Whether `replay_loss` works."""
        return False

    def replay_loss(self, copy: Any, batch: Any, batch_idx: int) -> Any:
        """Compute the loss of a batch with a copy of the module, as the loop did with the module itself."""
        raise NotImplementedError

    def replay_context(self) -> AbstractContextManager[Any]:
        """Return the context that the loss is computed in, such as autocast."""
        return nullcontext()
