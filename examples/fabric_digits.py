"""Lightning Fabric on handwritten digits: updates of broken batches are skipped, and training ends well.

Run: ``python examples/fabric_digits.py``. It needs ``pip install lightning scikit-learn``.
"""

from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import FabricWatch

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
images[100, 7] = float("nan")  # one broken pixel of one picture
data = TensorDataset(images, torch.tensor(digits.target))


def loss_of(network: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Compute the loss of a batch."""
    return nn.functional.cross_entropy(network(batch[0]), batch[1])


def main() -> tuple[FabricWatch, float]:
    """Train for two epochs, and return the watch and the last loss."""
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1, loggers=CSVLogger("logs/fabric"))
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=0.01))
    loader: Any = fabric.setup_dataloaders(DataLoader(data, batch_size=32, shuffle=True))

    with FabricWatch(fabric, model, optimizer, log_every_n_steps=1, on_explosion="skip", step=loss_of) as watch:
        for _ in range(2):
            for batch in loader:
                watch.batch(batch)  # optional, as step=: a diagnosis looks at the batch, and computes the step again
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                watch.loss(loss)  # the only line that is needed
                fabric.backward(loss)
                fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
                optimizer.step()
    return watch, float(loss.detach())


if __name__ == "__main__":
    watch, loss = main()
    print("skipped updates:", watch.last.skipped_steps if watch.last else None)
    print(f"last loss: {loss:.3f}")
