"""The losses that one optimizer step is made of."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_gradexplode import GradientExplosionMonitor


class OwnBackward(pl.LightningModule):
    """Returns a loss of some shape, which its own ``backward`` reduces."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.shape = shape
        self.dtype_of_loss = dtype
        self.losses: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return losses of the rows, or one loss in a tensor of one element."""
        loss: Tensor = self.layer(torch.ones(4, 2)).square().mean(dim=1)
        loss = (loss if self.shape == (4,) else loss.mean().reshape(self.shape)).to(self.dtype_of_loss)
        self.losses.append(loss.detach())
        return loss

    def backward(self, loss: Tensor) -> None:
        """Reduce the loss."""
        loss.sum().backward()  # type: ignore[no-untyped-call]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((), torch.float32), ((1,), torch.float32), ((1, 1), torch.bfloat16), ((), torch.float64), ((4,), torch.float32)],
)
def test_a_loss_of_any_shape_and_type_is_measured_or_left_out(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A loss of one element is recorded as it is; one with several has no value, and everything else is measured."""
    module, monitor = OwnBackward(shape, dtype), GradientExplosionMonitor(report=False)
    pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, [torch.zeros(1)] * 2)
    assert monitor.last is not None
    assert monitor.last.step == 1
    assert monitor.last.loss == (None if shape == (4,) else float(module.losses[1]))
    assert monitor.last.grad_norm is not None
