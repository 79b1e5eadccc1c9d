"""Two workers of Ray Train learn digits, one pixel of which is broken; the report comes from global rank zero.

Run: ``python examples/ray_digits.py``. It needs ``pip install "ray[train]" lightning scikit-learn``.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import ray.train
import torch
from lightning.pytorch.loggers import CSVLogger
from ray.train import RunConfig, ScalingConfig
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer
from ray.train.torch import TorchTrainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor


class Digits(pl.LightningModule):
    """A small perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compute the loss."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def train(config: dict[str, str]) -> None:
    """Train for two epochs; Ray calls this on each worker."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    images[100, 7] = float("nan")  # one broken pixel of one picture
    pl.seed_everything(0)
    monitor = GradientExplosionMonitor(log_every_n_steps=1, on_explosion="skip")
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices="auto",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[monitor],  # as in any Trainer
        logger=CSVLogger(config["folder"]),
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    data = TensorDataset(images, torch.tensor(digits.target))
    prepare_trainer(trainer).fit(Digits(), DataLoader(data, batch_size=32, shuffle=True))
    ray.train.report({"rank": trainer.global_rank, "norm": monitor.last.grad_norm, "found": len(monitor.findings)})


def main() -> Any:
    """Train on two workers, and return Ray's result; the report is in ``logs/ray/lightning_logs/version_0``."""
    folder = str(Path("logs/ray").resolve())
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": folder},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=f"{folder}/ray"),
    )
    return trainer.fit()


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False)
    main()
