"""Whether what was done about an incident has helped follows from how the run went on."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor, Rollback
from lightning_gradexplode.diagnose.outcomes import with_outcomes
from lightning_gradexplode.records import Attempt
from tests.diagnose.evidence import history


def severities(steps: int, critical: tuple[int, ...]) -> list[float]:
    return [3.0 if step in critical else 0.0 for step in range(steps)]


@pytest.mark.parametrize(
    ("steps", "critical", "actions", "expected"),
    [
        (41, (10,), ("rollback",), [True]),
        (31, (10,), ("rollback",), [True]),
        (30, (10,), ("rollback",), [None]),
        (41, (10, 14), ("rollback",), [False]),
        (41, (10,), ("checkpoint",), [None]),
        (41, (10,), ("rollback", "rollback"), [False, True]),
    ],
)
def test_an_action_has_helped_if_the_run_stays_calm(
    steps: int, critical: tuple[int, ...], actions: tuple[str, ...], expected: list[bool | None]
) -> None:
    """Twenty steps without another critical finding or another remedy; an action that is no remedy has no outcome."""
    tried = [Attempt(10 + 5 * place, action) for place, action in enumerate(actions)]
    judged = with_outcomes(tried, [history({"severity": severities(steps, critical)})])
    assert [one.helped for one in judged] == expected


def test_without_a_history_nothing_is_known() -> None:
    """Of a run that has just begun."""
    assert with_outcomes([Attempt(3, "skip")], ())[0].helped is None


class SquaredForever(LightningModule):
    """A loss that falls for ever, faster and faster, at any learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        output: Tensor = self.net(batch[0])
        return -output.pow(4).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)


def test_a_rate_that_lower_ones_have_not_mended_is_not_the_cause() -> None:
    """Rollbacks at ever lower rates that end the same way drop the learning rate from the causes."""
    torch.manual_seed(0)
    monitor = GradientExplosionMonitor(on_explosion=Rollback(every_n_steps=1, most=8, most_in_a_row=8), report=False)
    loader = DataLoader(TensorDataset(2 * torch.randn(512, 4)), 16)
    trainer = Trainer(max_steps=200, max_epochs=-1, accelerator="cpu", callbacks=[monitor], logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(SquaredForever(), loader)
    found = monitor.diagnosis()
    assert found is not None
    assert found.causes[0].kind != "learning-rate"
    assert all(math.isfinite(one.confidence) for one in found.causes)
