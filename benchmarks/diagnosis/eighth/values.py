"""Values of states from recorded transitions."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class TargetAtAFifth(Case):
    """Values of actions from a fixed record, whose target moves by a fifth of the way at each step."""

    # github.com/facebookresearch/ReAgent/issues/189
    host = "plain"
    kinds = ("moving-target",)
    good = 4.0
    tau = 0.2
    cure = settings(tau=0.005)
    cured_by = r"\btau\b|slower|slowly|rarely|less often"
    lr = 1e-2
    steps = 200
    batch_size = 64

    def build(self) -> None:
        self.q = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 2))
        self.target = copy.deepcopy(self.q).requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        random = noise(831)
        state = torch.randn(1280, 4, generator=random)
        action = torch.randint(0, 2, (1280,), generator=random)
        push = (2 * action.float() - 1)[:, None]
        following = 1.15 * state + 0.2 * push + 0.05 * torch.randn(1280, 4, generator=random)
        return {"state": state, "action": action, "reward": torch.ones(1280), "next_state": following}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.q(batch["state"]).gather(1, batch["action"][:, None])[:, 0]
        with torch.no_grad():
            goal = batch["reward"] + 0.99 * self.target(batch["next_state"]).amax(1)
        return functional.mse_loss(found, goal)

    def optimize(self, model: Any, batch: Any, optimizers: Any, watch: Any, backward: Any) -> None:
        super().optimize(model, batch, optimizers, watch, backward)
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.q.parameters(), strict=True):
                old.lerp_(new, self.tau)
