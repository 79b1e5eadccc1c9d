"""Helpers for tests: a logger that records, a training loop without a Trainer, and small modules that explode.

Example of a test::

    class Network(ExplodingRegression, LightningModule):
        pass


    logger, monitor = RecordingLogger(), GradientExplosionMonitor(report=False)
    Trainer(logger=logger, callbacks=[monitor], max_steps=30, log_every_n_steps=1).fit(Network())
    assert monitor.exploded
    assert len(logger.values("gradexplode/grad_norm")) == 30
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.hosts.base import TrainingLoop

Pair = tuple[Tensor, Tensor]


if TYPE_CHECKING:
    from lightning_gradexplode.hosts.recording_logger import RecordingLogger as RecordingLogger


class PlainLoop(TrainingLoop):
    """A minimal training loop that runs the engine without a Trainer. It has no optional capability.

    Args:
        module: The network.
        optimizers: Its optimizers; each steps once per batch.
        loss: Computes the loss of a batch.
        loggers: Loggers of the run.
        folder: Folder of the run's logs.
        log_every_n_steps: Number of steps from one log to the next.

    Example:
        >>> from lightning_gradexplode.arguments import Arguments
        >>> from lightning_gradexplode.engine.run import TrainingRun
        >>> network = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        >>> loop = PlainLoop(network, [optimizer], lambda batch: network(batch).square().mean())
        >>> run = TrainingRun(Arguments.checked(report=False), loop, {})
        >>> loop.train(run, [torch.ones(4, 2)] * 3)
        >>> run.last.step
        2
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        loss: Callable[[Any], Tensor],
        loggers: Sequence[Any] = (),
        folder: Path | None = None,
        log_every_n_steps: int = 1,
    ) -> None:
        self._module, self._optimizers, self._loss = module, list(optimizers), loss
        self._loggers, self._folder, self._log_every_n_steps = loggers, folder, log_every_n_steps
        self._step = 0

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The optimizers."""
        return self._optimizers

    @property
    def step(self) -> int:
        """Number of completed batches."""
        return self._step

    @property
    def is_automatic(self) -> bool:
        """Whether there is one optimizer."""
        return len(self._optimizers) == 1

    @property
    def loggers(self) -> Sequence[Any]:
        """The loggers."""
        return self._loggers

    @property
    def log_every_n_steps(self) -> int:
        """Number of steps from one log to the next."""
        return self._log_every_n_steps

    def log_folder(self) -> Path:
        """Return the folder of the run's logs."""
        return super().log_folder() if self._folder is None else self._folder

    def train(self, run: TrainingRun, batches: Iterable[Any], close: bool = True) -> None:
        """Train on batches, and call the engine as the adapter of a training loop does.

        Args:
            run: The monitored run.
            batches: The batches; each optimizer steps once per batch.
            close: Whether the run ends after them.
        """
        for batch_idx, batch in enumerate(batches):
            run.batch_started(batch, batch_idx)
            for optimizer in self._optimizers:
                run.gradients_cleared()
                optimizer.zero_grad()
                loss = self._loss(batch)
                run.loss_computed(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                run.backward_ended()
                run.gradients_ready(optimizer)
                optimizer.step()
            run.batch_ended(loss.detach())
            self._step += 1
        if close:
            run.flush()
            run.close()


class ExplodingRegression(nn.Module):
    """A linear regression whose learning rate is too high: loss, gradients and weights grow exponentially.

    Combine it with the ``LightningModule`` of your namespace: ``class Network(ExplodingRegression, LightningModule)``.

    Args:
        learning_rate: Above about 2 the loss grows from step to step; with 0.1 training is stable.
    """

    def __init__(self, learning_rate: float = 4.0) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.layer = nn.Linear(8, 1)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        """Return half the mean squared error."""
        inputs, targets = batch
        return nn.functional.mse_loss(self.layer(inputs), targets) / 2

    def configure_optimizers(self) -> Optimizer:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return 100 batches, the same in each process and epoch."""
        inputs = torch.randn(1600, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=16)


class ExplodingRecurrence(nn.Module):
    """A linear recurrent network whose error gradients grow by a constant factor per time step until they overflow.

    Combine it with the ``LightningModule`` of your namespace: ``class Network(ExplodingRecurrence, LightningModule)``.

    Args:
        gain: The factor. The initial recurrent matrix is orthogonal times this number; with 0.9 training is stable.
        time_steps: Length of the sequences.
    """

    def __init__(self, gain: float = 4.0, time_steps: int = 100) -> None:
        super().__init__()
        self.time_steps = time_steps
        self.inward = nn.Linear(1, 8, bias=False)
        self.recurrent = nn.Linear(8, 8, bias=False)
        self.outward = nn.Linear(8, 1, bias=False)
        nn.init.orthogonal_(self.recurrent.weight, gain)

    def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
        """Return the mean squared error of the output after the last time step."""
        inputs, targets = batch
        state = inputs.new_zeros(len(inputs), 8)
        for values in inputs.unbind(dim=1):
            state = self.recurrent(state) + self.inward(values.unsqueeze(1))
        return nn.functional.mse_loss(self.outward(state), targets)

    def configure_optimizers(self) -> Optimizer:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return 100 batches, the same in each process and epoch."""
        inputs = torch.randn(800, self.time_steps, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(inputs, inputs[:, :1]), batch_size=8)


def __getattr__(name: str) -> Any:
    """Import `RecordingLogger`, and with it Lightning, at the first use."""
    if name == "RecordingLogger":
        from lightning_gradexplode.hosts.recording_logger import RecordingLogger

        return RecordingLogger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
