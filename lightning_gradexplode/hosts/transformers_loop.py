"""The adapter for the Trainer of Hugging Face Transformers."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.hosts.csv_log import CSVLog
from lightning_gradexplode.hosts.torch_loop import TorchLoop
from lightning_gradexplode.records.log import logger


class TransformersLoop(TorchLoop):
    """The Trainer's loop, from the arguments of its callbacks.

    Args:
        args: The ``TrainingArguments``.
        state: The ``TrainerState``.
        model: The network.
        optimizer: The optimizer, in Accelerate's wrapper.
        scheduler: The learning rate scheduler.
        loggers: The loggers, None for those that ``args.report_to`` names.

    Attributes:
        losses: Number of losses that were computed for the coming step.
        metrics: The latest values for the Trainer's own logs.
        trains_loss_of_model: Whether the last backward pass went through the loss that the model returns.
    """

    late_measurement = (
        "an optimizer steps without a backward pass through a result of the model; its gradients are measured as it "
        "gets them, after max_grad_norm"
    )

    first_step = 1
    reduces = True  # the Trainer wraps the model

    def __init__(
        self,
        args: Any,
        state: Any,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any,
        loggers: Sequence[Any] | None,
    ) -> None:
        folder = Path(args.output_dir)
        written = _loggers(args, folder) if loggers is None and state.is_world_process_zero else loggers or []
        super().__init__(model, [optimizer], written, folder, getattr(optimizer, "scaler", None), None)
        self._args, self._state, self._scheduler = args, state, scheduler
        self.losses = 0
        self.trains_loss_of_model = True
        self.metrics: dict[str, float] = {}

    @property
    def step(self) -> int:
        """The ``global_step`` that the Trainer logs this step at, counted from 1."""
        return int(self._state.global_step) + 1

    @property
    def is_compiled(self) -> bool:
        """``torch_compile``."""
        return bool(self._args.torch_compile) or super().is_compiled

    @property
    def epoch(self) -> int:
        """Index of the current epoch."""
        return int(self._state.epoch or 0)

    @property
    def is_main_process(self) -> bool:
        """``state.is_world_process_zero``."""
        return bool(self._state.is_world_process_zero)

    @property
    def micro_batches(self) -> int:
        """Number of losses of this step, which the Trainer has divided so that their sum is the step's loss."""
        return max(self.losses, 1)

    @property
    def log_every_n_steps(self) -> int:
        """``logging_steps``, 50 where the Trainer does not log by steps."""
        by_steps = str(getattr(self._args.logging_strategy, "value", self._args.logging_strategy)) == "steps"
        return max(int(self._state.logging_steps or self._args.logging_steps), 1) if by_steps else 50

    def settings(self) -> Mapping[str, Any]:
        """Return precision and scheduler, and the class that the user has."""
        precision = "bf16-mixed" if self._args.bf16 else "16-mixed" if self._args.fp16 else "32-true"
        names = tuple(type(getattr(one, "scheduler", one)).__name__ for one in self.schedulers)
        own = {"precision": precision, "schedulers": names, "monitor": "GradientExplosionTrainerCallback"}
        return {**super().settings(), **own}

    @property
    def schedulers(self) -> Sequence[Any]:
        """The learning rate scheduler."""
        return [] if self._scheduler is None else [getattr(self._scheduler, "scheduler", self._scheduler)]

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Keep values for the Trainer's next log."""
        self.metrics.update(metrics)

    @property
    def can_replay(self) -> bool:
        """Whether the batch is known, and the loss is that of the model, which a copy of it can compute."""
        return self.batch_is_known and self.trains_loss_of_model

    def replay_loss(self, copy: Any, batch: Any, batch_idx: int) -> Any:
        """Call the copy with the batch, without Accelerate's wrapper around the original's ``forward``."""
        vars(copy).pop("forward", None)
        return loss_in(copy(**batch))

    def replay_context(self) -> AbstractContextManager[Any]:
        """Return autocast in mixed precision."""
        dtype = torch.bfloat16 if self._args.bf16 else torch.float16 if self._args.fp16 else None
        return nullcontext() if dtype is None else torch.autocast(self._args.device.type, dtype)

    def close(self) -> None:
        """Close the files that were opened for this run."""
        for one in self._loggers or ():
            if type(one).__name__ == "_OwnWriter":
                one.close()


def loss_in(output: Any) -> Tensor | None:
    """Return the loss in what a model returned, where it is a tensor of one element; None if there is none."""
    loss = output.get("loss") if isinstance(output, Mapping) else next(iter(output), None) if output else None
    return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None


def tensors_in(output: Any) -> list[Tensor]:
    """Return the tensors in what a model returned through which a backward pass may go."""
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else [output]
    )
    return [one for one in values if isinstance(one, Tensor) and one.requires_grad]


def _loggers(args: Any, folder: Path) -> list[Any]:
    """Return loggers for TensorBoard and W&B where the Trainer reports to them, else a file of the scalars."""
    found: list[Any] = []
    if "tensorboard" in args.report_to and importlib.util.find_spec("tensorboard") is not None:
        own = os.environ.get("TENSORBOARD_LOGGING_DIR") or getattr(args, "logging_dir", None)
        found.append(_tensorboard(Path(own) if own else folder / "runs" / "gradexplode"))
    wandb = sys.modules.get("wandb")
    if "wandb" in args.report_to and wandb is not None and wandb.run is not None:
        found.append(wandb.run)
    others = sorted(set(args.report_to) - {"tensorboard", "wandb", "none"})
    if others:
        logger.warning("gradexplode: nothing is written to %s; pass loggers=", ", ".join(others))
    return found or [CSVLog(folder)]


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    class _OwnWriter(SummaryWriter):
        """A writer that is closed with the run."""

    return _OwnWriter(str(folder))
