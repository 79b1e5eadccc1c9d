"""A run that is killed and resumed ends bit for bit as one that was never stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_gradexplode import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    ConstantClip,
    PercentileClip,
    RecurrentBound,
    ReduceLearningRate,
    Rollback,
    SaveCheckpoint,
    SkipStep,
    WeightPenalty,
    ZScoreClip,
)
from tests.processes import Script
from tests.respond.test_whole_runs import Planned, fit

END = 48
POINTS = tuple(range(4, 44, 2))
"""The 20 steps after which runs are killed."""
NAN = float("nan")
FACTORS = {11: 1e4, 12: NAN, 19: 1e6, 27: NAN, 28: NAN, 33: 1e5, 41: NAN}
"""What losses are multiplied by, by step."""


class Scheduled(Planned):
    """Has momentum, and a learning rate that falls at every step."""

    def configure_optimizers(self) -> Any:
        """Return optimizer and schedule."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, END)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Normalized(Planned):
    """Has running averages, which NaN inputs would spoil."""

    def __init__(self, factors: dict[int, float]) -> None:
        super().__init__(factors, nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 1)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of inputs that are multiplied by the planned factor."""
        step = self.trainer.global_step
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        return self.loss((inputs * self.factors.get(step, 1.0), inputs.sum(dim=1, keepdim=True)))


@dataclass(frozen=True)
class Case:
    """Responses and a clip policy.

    Args:
        responses: Builds the responses; it is given a folder.
        clip: Builds the clip policy.
        module: The module.
    """

    responses: Callable[[Path], Any]
    clip: Callable[[], Any] = lambda: None
    module: type[Planned] = Planned


CASES = {
    "skip, auto": Case(lambda folder: "skip", lambda: "auto"),
    "reduce-lr, z-score": Case(lambda folder: ReduceLearningRate(hold=5, return_over=5), lambda: ZScoreClip(warmup=8)),
    "rollback, percentile": Case(lambda folder: Rollback(4, 4), lambda: PercentileClip(50.0)),
    "rollback in files, units": Case(lambda folder: Rollback(4, 4, folder=folder), AdaptiveGradientClip),
    "rollback, tensors": Case(
        lambda folder: Rollback(4, 4, learning_rate_factor=1.0), lambda: AdaptiveTensorClip(warmup=5)
    ),
    "penalty, constant": Case(
        lambda folder: [WeightPenalty(l2=0.01, when="after-explosion", hold=9), SkipStep(9)], lambda: 1.0
    ),
    "bound, checkpoint": Case(lambda folder: [RecurrentBound(), SaveCheckpoint(folder, in_checkpoint=True), "skip"]),
    "schedule, value": Case(
        lambda folder: ["skip", Rollback(3, 6, keep=3)], lambda: ConstantClip(0.5, "value"), Scheduled
    ),
    "chain": Case(lambda folder: [SkipStep(1), ReduceLearningRate(cooldown=1, most=1), Rollback(4, 4)], lambda: "auto"),
    "running averages": Case(lambda folder: [SkipStep(1), Rollback(4, 4)], lambda: "auto", Normalized),
}


def train(case: Case, folder: Path, ckpt_path: Path | None = None) -> tuple[pl.Trainer, Planned]:
    """Train a case to its end, and leave a checkpoint after every 2nd step."""
    module = case.module(FACTORS)
    torch.manual_seed(3)
    for one in module.parameters():
        nn.init.normal_(one, std=0.3)
    saves = [] if ckpt_path else [ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)]
    trainer = fit(
        module,
        case.responses(folder / "states"),
        *saves,
        clip=case.clip(),
        diagnose=False,
        ckpt_path=None if ckpt_path is None else str(ckpt_path),
        default_root_dir=folder / "logs",
        max_steps=END,
        max_epochs=9,
        enable_checkpointing=True,
    )
    return trainer, module


def tensors(trainer: pl.Trainer, module: nn.Module) -> dict[str, Tensor]:
    """Return weights, buffers and optimizer state by name."""
    states = trainer.optimizers[0].state_dict()["state"]
    state = {f"{place}.{name}": value for place, one in states.items() for name, value in one.items()}
    return {**module.state_dict(), **{name: one for name, one in state.items() if isinstance(one, Tensor)}}


def ending_otherwise(name: str, points: tuple[int, ...], folder: Path) -> list[str]:
    """Kill a run at some points, resume it, and return the checkpoints from which it does not end bit for bit alike."""
    whole = tensors(*train(CASES[name], folder))
    assert all(bool(torch.isfinite(one).all()) for one in whole.values())
    paths = [path for point in points if (path := folder / f"step={point}.ckpt").exists()]
    assert paths
    otherwise = []
    for path in paths:
        torch.load(path, weights_only=True)
        resumed = tensors(*train(CASES[name], folder, path))
        if resumed.keys() != whole.keys() or not all(torch.equal(one, whole[key]) for key, one in resumed.items()):
            otherwise.append(path.name)
    return otherwise


pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]


@pytest.mark.parametrize("name", CASES)
def test_runs_resumed_from_many_points_end_bit_for_bit_as_whole_ones(name: str, tmp_path: Path) -> None:
    """Every policy and response from every fourth of the 20 points, each of which two or three cases have."""
    assert ending_otherwise(name, POINTS[list(CASES).index(name) % 4 :: 4], tmp_path) == []


KILLED = """
import os, sys
from pathlib import Path
from tests.respond.test_kill_and_resume import CASES, Planned, train

def killed(self, optimizer):
    if self.trainer.global_step == 30:
        os._exit(9)

Planned.on_before_optimizer_step = killed
train(CASES["chain"], Path(sys.argv[1]))
"""


def test_a_process_that_is_killed_within_a_step_is_resumed_from_its_last_checkpoint(tmp_path: Path) -> None:
    """The process ends at once, between the backward pass and the update, and leaves no files but its checkpoints."""
    killed = tmp_path / "killed"
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    ended = Script(program, [str(killed)]).wait()
    assert ended.exit_code == 9, ended.errors
    assert {path.suffix for path in killed.iterdir() if path.is_file()} == {".ckpt"}
    last = max(killed.glob("*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
    assert last.name == "step=30.ckpt"
    whole = tensors(*train(CASES["chain"], tmp_path / "whole"))
    resumed = tensors(*train(CASES["chain"], killed, last))
    assert all(torch.equal(one, whole[key]) for key, one in resumed.items())
