"""Packages with training loops of their own."""

from __future__ import annotations

import tempfile
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from benchmarks.packages.training import Training, part
from lightning_gradexplode import GradientWatch
from lightning_gradexplode.hosts.transformers import GradientExplosionTrainerCallback


class LanguageModel(Training):
    """A small GPT-2, trained by the Trainer of Transformers."""

    package = "transformers"
    rates = (1e-3, 1.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on random tokens."""
        part("transformers", "set_seed")(0)
        config = part("transformers", "GPT2Config")(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2)
        self.module = part("transformers", "GPT2LMHeadModel")(config)
        tokens = torch.randint(0, 50, (256, 16))
        if self.is_monitored:
            self.monitor = GradientExplosionTrainerCallback(report=False)
        with tempfile.TemporaryDirectory() as folder:
            arguments = part("transformers", "TrainingArguments")(
                output_dir=folder,
                per_device_train_batch_size=8,
                max_steps=60,
                learning_rate=rate,
                lr_scheduler_type="constant",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=100,
                save_strategy="no",
            )
            part("transformers", "Trainer")(
                self.module,
                arguments,
                train_dataset=[{"input_ids": one, "labels": one.clone()} for one in tokens],
                callbacks=[] if self.monitor is None else [self.monitor],
            ).train()


class Diffusion(Training):
    """A small denoising network of Diffusers, in a loop of Accelerate that accumulates gradients."""

    package = "diffusers"
    faults: ClassVar = {"a picture with NaN": ("nonfinite-input",)}
    rates = (1e-3, 0.5)

    def train(self, fault: str, rate: float) -> None:
        """Train on noise."""
        accelerator = part("accelerate", "Accelerator")(cpu=True, gradient_accumulation_steps=2)
        network = part("diffusers", "UNet2DModel")(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        pictures = 0.5 * torch.randn(128, 1, 8, 8)
        if fault in self.faults:
            pictures[70, 0, 1, 1] = torch.nan
        schedule = part("diffusers", "DDPMScheduler")(100)
        loader: Any = torch.utils.data.DataLoader(pictures, batch_size=8)  # type: ignore[arg-type]
        network, optimizer, batches = accelerator.prepare(
            network, torch.optim.AdamW(network.parameters(), lr=rate), loader
        )

        def step(model: Any, batch: Any) -> Any:
            noise, time = torch.randn_like(batch), torch.randint(0, 100, (len(batch),))
            return nn.functional.mse_loss(model(schedule.add_noise(batch, noise, time), time).sample, noise)

        if self.is_monitored:
            self.monitor = GradientWatch(network, optimizer.optimizer, step=step, report=False)
        for batch in [batch for _ in range(3) for batch in batches]:
            with accelerator.accumulate(network):
                if self.monitor is not None:
                    self.monitor.batch(batch)
                loss = step(network, batch)
                if self.monitor is not None:
                    self.monitor.loss(loss)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        if self.monitor is not None:
            self.monitor.close()
        self.module = network


class _Agent(Training):
    package = "stable-baselines3"
    rates = (3e-4, 1.0)
    kind: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}

    def train(self, fault: str, rate: float) -> None:
        agent = part("stable_baselines3", self.kind)(
            "MlpPolicy", point_to_move(), seed=0, learning_rate=rate, device="cpu", **self.settings
        )
        if self.is_monitored:
            self.monitor = GradientWatch(agent.policy, agent.policy.optimizer, report=False)
        agent.learn(3000)
        if self.monitor is not None:
            self.monitor.close()
        self.module = agent.policy


class Ppo(_Agent):
    """Proximal policy optimization, by Stable-Baselines3; the loss is not known."""

    kind = "PPO"
    settings: ClassVar = {"n_steps": 256, "n_epochs": 4}


class Dqn(_Agent):
    """Q-learning, by Stable-Baselines3; the loss is not known."""

    kind = "DQN"
    settings: ClassVar = {"learning_starts": 200}


def point_to_move() -> Any:
    """Return an environment: a point that is to be moved to the origin."""
    spaces = part("gymnasium", "spaces")

    class Point(part("gymnasium", "Env")):  # type: ignore[misc]
        observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        action_space = spaces.Discrete(3)
        random = np.random.default_rng(0)

        def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.at, self.time = self.random.normal(size=4).astype(np.float32), 0
            return self.at, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            push = 0.1 * (float(action) - 1) * np.array([1, -1, 0.5, 0], np.float32)
            self.at, self.time = (0.95 * self.at + push).astype(np.float32), self.time + 1
            return self.at, -abs(float(self.at[0])), False, self.time >= 50, {}

    return Point()
