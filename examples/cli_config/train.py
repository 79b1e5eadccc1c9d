"""A network for handwritten digits, trained by ``LightningCLI`` as ``fit.yaml`` says.

Run in this folder: ``python train.py fit --config fit.yaml``
"""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(LightningModule):
    """A perceptron.

    Args:
        hidden: Width of its hidden layer.
        learning_rate: The learning rate.
    """

    def __init__(self, hidden: int = 32, learning_rate: float = 0.01) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the digits in batches of 64."""
        digits = load_digits()
        images = torch.tensor(digits.data, dtype=torch.float32) / 16
        return DataLoader(TensorDataset(images, torch.tensor(digits.target)), batch_size=64, shuffle=True)


def main(arguments: list[str] | None = None) -> LightningCLI:
    """Run the command line."""
    return LightningCLI(Digits, seed_everything_default=0, args=arguments)


if __name__ == "__main__":
    main()
