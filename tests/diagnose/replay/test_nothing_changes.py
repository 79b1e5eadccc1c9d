"""A replay, and experiments, leave the run bit-identical."""

from __future__ import annotations

import random
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode.diagnose.replay import KeptBatch, RandomState, ReplayStep, replay_step, run_experiments


class Eventful(pl.LightningModule):
    """Changes as much of itself in a training step as user code does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))
        self.accuracy: Any = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
        self.average: Tensor
        self.register_buffer("average", torch.zeros(3))
        self.steps = 0
        self.history: list[Any] = []
        self.window: deque[Tensor] = deque(maxlen=3)
        self.by_name = {"last": torch.zeros(3), "nested": [np.zeros(2)]}
        self.generator = torch.Generator().manual_seed(3)
        self.random = random.Random(1)
        self.numpy = np.random.default_rng(2)
        self.lock = threading.Lock()
        self.data = torch.randn(300, 4)
        self.parent = weakref.ref(self.body)
        self.logged_to = open(Path(__file__), encoding="utf-8")  # noqa: PTH123, SIM115
        outputs = self.history
        self.body.register_forward_hook(lambda module, inputs, output: outputs.append(float(output.detach().mean())))
        self.register_full_backward_hook(self.count_backward)
        self.fails = False

    def count_backward(self, *_: Any) -> None:
        self.steps += 1000

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        x, y = batch
        x = x + 0.1 * torch.randn(x.shape, generator=self.generator) + self.random.random() * self.numpy.random()
        x = x + random.random() + np.random.rand()
        with self.lock:
            logits = self.head(self.body(x))
        self.average.mul_(0.9).add_(logits.detach().mean(0))
        self.window.append(logits)
        self.by_name["last"] = logits
        self.by_name["nested"][0] += 1.0  # type: ignore[index]
        loss: Tensor = nn.functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("loss", loss, on_epoch=True)
        self.data[batch_idx] += 1.0
        if self.fails:
            loss = loss + torch.log(logits.mean() * 0.0)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class ReplayEach(pl.Callback):
    """Replays each step, with experiments, before its update."""

    def __init__(self) -> None:
        self.statuses: list[str] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batch, self.index, self.state = KeptBatch(batch), batch_idx, RandomState.capture()

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        module.fails = self.index % 2 == 1
        step = ReplayStep(
            module,
            lambda copy, batch, batch_idx: copy.training_step(batch, batch_idx),
            self.batch,
            self.index,
            random_state=self.state,
            context=trainer.precision_plugin.forward_context,
        )
        replay = replay_step(step, failed="loss" if module.fails else None)
        self.statuses.append(replay.status)
        run_experiments(step, replay, before={name: one * 0.9 for name, one in module.named_parameters()})
        module.fails = False


def fit(*callbacks: Any) -> tuple[Any, dict[str, Any]]:
    """Train with callbacks; return the module and what else can be compared."""
    pl.seed_everything(7, verbose=False)
    module = Eventful()
    data = TensorDataset(torch.randn(48, 4), torch.randint(0, 3, (48,)))
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, DataLoader(data, 8, shuffle=True))
    module.logged_to.close()
    return module, {
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "random": (random.getstate(), torch.get_rng_state().tolist(), float(np.random.rand())),
    }


def test_a_run_with_replays_ends_as_one_without() -> None:
    """Weights, buffers, metrics, attributes, generators and random state agree bit for bit after two epochs."""
    replays = ReplayEach()
    module, rest = fit(replays)
    expected, expected_rest = fit()

    assert set(replays.statuses) == {"finite", "reproduced"}
    for name, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name
    assert rest == expected_rest
    assert (module.steps, module.history) == (expected.steps, expected.history)
    assert all(map(torch.equal, module.window, expected.window))
    assert torch.equal(module.data, expected.data)
    assert torch.equal(module.by_name["last"], expected.by_name["last"])
    assert module.by_name["nested"][0].tolist() == expected.by_name["nested"][0].tolist()
    assert torch.equal(module.generator.get_state(), expected.generator.get_state())
    assert module.random.getstate() == expected.random.getstate()
    assert module.numpy.bit_generator.state == expected.numpy.bit_generator.state
    assert module.parent() is module.body
