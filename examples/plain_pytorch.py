"""A loop of plain PyTorch on handwritten digits: its learning rate is raised until it explodes, and then it is stopped.

Run: ``python examples/plain_pytorch.py``. It needs ``pip install scikit-learn``.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientWatch

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
data = TensorDataset(images, torch.tensor(digits.target))


def main() -> GradientWatch:
    """Train with a rate that doubles every ten steps, and return the watch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=2.0)

    with GradientWatch(model, optimizer, log_dir="logs/plain", log_every_n_steps=1, on_explosion="stop") as watch:
        for inputs, targets in DataLoader(data, batch_size=16, shuffle=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            watch.loss(loss)  # the only further line
            loss.backward()
            optimizer.step()
            schedule.step()
            if watch.should_stop:
                break
    return watch


if __name__ == "__main__":
    watch = main()
    print("exploded:", watch.exploded)
    print("report:", watch.report_folder)
