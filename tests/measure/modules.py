"""Recurrent networks of a user, and the facts about a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_gradexplode.measure.run_facts import collect_run_facts
from lightning_gradexplode.records import RunFacts


class ElmanCell(nn.Module):
    """A recurrent cell of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.i2h = nn.Linear(6, 6)
        self.h2h = nn.Linear(6, 6)


class CharRNN(nn.Module):
    """A class with a recurrent name whose only square matrix has a short name."""

    def __init__(self) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.randn(3, 5))
        self.W = nn.Parameter(torch.eye(5) * 1.5)


def facts_of(module: nn.Module, *optimizers: Any, **settings: Any) -> RunFacts:
    """Collect with the settings as keywords."""
    return collect_run_facts(module, optimizers, settings)
