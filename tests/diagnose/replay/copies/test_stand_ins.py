"""Replacements of trainer, loggers and optimizers, in manual optimization."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode.diagnose.replay import ReplayStep, replay_step
from lightning_gradexplode.records import Replay
from lightning_gradexplode.testing import RecordingLogger


class Adversarial(LightningModule):
    """Two networks, each with an optimizer, in manual optimization."""

    def __init__(self, fault: str = "", stepped: dict[int, int] | None = None) -> None:
        super().__init__()
        self.stepped = stepped or {}
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(2, 3), nn.Linear(3, 1)
        self.fault = fault
        self.replay: Replay | None = None
        self.norms: list[float] = []

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(one.parameters(), lr=0.1) for one in (self.generator, self.critic)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        first, second = optimizers
        self.batch, self.critic_optimizer = batch, second.optimizer
        (inputs,) = batch
        with second.toggle_model():
            loss = self.critic(self.generator(inputs).detach()).mean()
            if self.fault == "critic":
                loss = loss + torch.log(-self.critic.weight.square().sum())
            second.zero_grad()
            self.manual_backward(loss)
            self.log("critic", loss)
            self.clip_gradients(second, 1.0, "norm")
            second.step()
        self.toggle_optimizer(first)
        loss = -self.critic(self.generator(inputs)).mean() / (0.0 if self.fault == "generator" else 1.0)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        self.lr_schedulers()
        assert self.logger is not None
        self.logger.log_metrics({})

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.replay is not None or (optimizer is self.critic_optimizer) != (self.fault == "critic"):
            return
        before = [(one.detach().clone(), one.grad, one.requires_grad) for one in self.parameters()]
        step = ReplayStep(
            self, lambda copy, one, index: copy.training_step(one, index), self.batch, stepped=self.stepped
        )
        self.replay = replay_step(step, failed="loss" if self.fault else None)
        for one, (was, grad, required) in zip(self.parameters(), before, strict=True):
            assert torch.equal(one, was)
            assert (one.grad is grad, one.requires_grad) == (True, required)


def fit(module: LightningModule) -> None:
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=RecordingLogger(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(2, 2)), 2))


class TestManualOptimization:
    def test_the_backward_pass_and_the_optimizers_are_served(self) -> None:
        """Both losses are computed, and no weight changes."""
        module = Adversarial()
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "finite"
        assert len(module.replay.backward_losses) == 2

    def test_a_fault_before_the_first_update_is_named(self) -> None:
        """The critic's loss is computed with the weights of the run."""
        module = Adversarial("critic")
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "reproduced"
        assert module.replay.first is not None
        assert module.replay.first.expression in (None, "torch.log(-self.critic.weight.square().sum())")

    def test_a_fault_after_an_update_that_was_taken_since_is_named(self) -> None:
        """The generator's loss is computed with the critic's weights after its step."""
        module = Adversarial("generator", {1: 1})
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "reproduced"
        assert module.replay.first is not None
        assert module.replay.first.name == "div"

    def test_a_fault_after_several_updates_of_an_optimizer_is_not_trusted(self) -> None:
        """The weights between its steps are not known."""
        module = Adversarial("generator", {1: 2})
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "not-reproduced"

    def test_a_fault_after_an_update_is_not_trusted(self) -> None:
        """The generator's loss was computed with weights that the replay does not have."""
        module = Adversarial("generator")
        fit(module)

        assert module.replay is not None
        assert module.replay.status == "not-reproduced"
        assert "an optimizer steps before" in module.replay.reason
