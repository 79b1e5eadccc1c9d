"""The models whose training steps the overhead is measured on."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(pl.LightningModule):
    """A stack of layers, trained to return zeros.

    Args:
        layers: The layers.
        width: Number of features that each takes and returns.
        length: Length of the sequences that the layers of a transformer take.
    """

    def __init__(self, layers: list[nn.Module], width: int, length: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.width, self.length = width, length

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Add each layer's output to its input."""
        (x,) = batch
        for layer in self.layers:
            x = x + 0.1 * layer(x)
        return x.square().mean()

    def batches(self, steps: int) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return random batches of four."""
        sequence = (self.length,) if isinstance(self.layers[0], nn.TransformerEncoderLayer) else ()
        return DataLoader(TensorDataset(torch.randn(steps * 4, *sequence, self.width)), batch_size=4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW with a learning rate that changes little."""
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


def models() -> dict[str, Callable[[], Model]]:
    """Return the models by name: one of many weights, one of few, and one of many tensors."""
    return {
        "transformer": lambda: Model(
            [nn.TransformerEncoderLayer(320, 8, 1280, dropout=0.0, batch_first=True) for _ in range(6)], 320
        ),
        "narrow MLP": lambda: Model([nn.Linear(32, 32) for _ in range(25)], 32),
        "1000 tensors": lambda: Model([nn.Linear(64, 64) for _ in range(500)], 64),
    }


def transformer(width: int, layers: int = 6, length: int = 16) -> Model:
    """Build a transformer of about ``72 * width ** 2`` parameters; shorter sequences make its steps faster."""
    blocks: list[nn.Module] = [
        nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True) for _ in range(layers)
    ]
    return Model(blocks, width, length)
