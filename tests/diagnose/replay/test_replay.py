"""The replay finds the operation that a failing step is known to begin with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradexplode.diagnose.replay import ReplayStep, replay_step
from lightning_gradexplode.records import Replay


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.drop(torch.relu(self.norm(self.body(x))))
        output: Tensor = self.head(hidden)
        return output


def replayed(run_step: Any, batch: Any, failed: Any, module: nn.Module | None = None, **settings: Any) -> Replay:
    return replay_step(ReplayStep(module or Network(), run_step, batch, **settings), failed=failed)


def test_a_logarithm_of_a_negative_number_is_named_with_its_line_and_row() -> None:
    """The first NaN is made by ``log`` in this file, at row 3."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        offset = torch.zeros(len(batch), 1)
        offset[3] = -100.0
        return torch.log(model(batch).square() + 1.0 + offset).mean()

    replay = replayed(step, torch.randn(6, 4), "loss")

    assert replay.status == "reproduced"
    assert replay.first is not None
    assert (replay.first.name, replay.first.result, replay.first.rows) == ("log", "nan", (3,))
    assert replay.first.code == "return torch.log(model(batch).square() + 1.0 + offset).mean()"


def test_an_infinity_hidden_by_where_is_named_beside_the_slope_it_spoils() -> None:
    """The value of ``log(0)`` is masked, its slope is 0/0: both are reported."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        share = torch.sigmoid(model(batch)) * torch.tensor([1.0, 0.0])
        return torch.where(share > 0, share.log(), 0.0).mean()

    replay = replayed(step, torch.randn(6, 4), "gradient")

    assert replay.status == "reproduced"
    assert replay.first is not None
    assert replay.hidden is not None
    assert (replay.first.phase, replay.first.node) == ("backward", "LogBackward0")
    assert (replay.hidden.phase, replay.hidden.name, replay.hidden.result) == ("forward", "log", "-inf")
    assert replay.first.line == replay.hidden.line


def test_a_mask_of_infinities_is_no_fault_and_a_fully_masked_row_is() -> None:
    """Row 2 of the scores is masked from end to end: its softmax is 0/0."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        scores = model.body(batch)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[:, 0] = True
        mask[2] = True
        return functional.softmax(scores.masked_fill(mask, float("-inf")), dim=1).square().sum()

    replay = replayed(step, torch.randn(6, 4), "loss")

    assert replay.first is not None
    assert (replay.first.name, replay.first.rows) == ("_softmax", (2,))


def test_not_a_number_in_the_batch_is_named_with_its_field_and_rows() -> None:
    """No operation is at fault: the batch held NaN."""
    batch = {"image": torch.randn(6, 4), "index": torch.arange(6)}
    batch["image"][4, 1] = float("nan")

    replay = replayed(lambda model, one, _: model(one["image"]).sum(), batch, "loss")

    assert (replay.status, replay.first) == ("reproduced", None)
    assert (replay.source, replay.source_name, replay.source_rows) == ("batch", "image", (4,))
