"""Remedies name the classes and calls of the training loop that the user has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_gradexplode.diagnose
from lightning_gradexplode import GradientWatch
from lightning_gradexplode.diagnose.remedies.loop_code import code_of
from lightning_gradexplode.records import RunFacts

LIGHTNING = re.compile(r"GradientExplosionMonitor|\bTrainer\(|trainer\.fit|manual_backward")
MONITORS = {
    "GradientWatch": "GradientWatch(model, optimizer, ",
    "FabricWatch": "FabricWatch(fabric, model, optimizer, ",
    "GradientExplosionTrainerCallback": "GradientExplosionTrainerCallback(",
    "MyWatch": "GradientWatch(model, optimizer, ",  # a user's own subclass
}


@pytest.mark.parametrize("monitor", MONITORS)
def test_no_code_of_another_loop_is_proposed(monitor: str) -> None:
    """Every piece of code is that of the user's own loop, and none is Lightning's."""
    code = code_of(RunFacts(monitor=monitor))
    assert code.monitor("clip=1.0") == f"`{MONITORS[monitor]}clip=1.0)`"
    pieces = [getattr(code, one.name) for one in fields(code)]
    assert not any(LIGHTNING.search(piece) for piece in pieces)
    assert "loss / 4" in code.backward("loss / 4")


def test_lightning_is_the_loop_of_a_run_that_says_nothing() -> None:
    """Without a name the monitor is Lightning's callback."""
    assert code_of(RunFacts()).monitor("clip=1.0") == "`GradientExplosionMonitor(clip=1.0)`"
    assert "manual_backward" in code_of(RunFacts()).backward("loss")


def test_no_rule_writes_code_of_lightning_by_itself() -> None:
    """In the source of the rules, code of a training loop is in one file only."""
    folder = Path(lightning_gradexplode.diagnose.__file__).parent
    rules = [one for part in ("", "calm", "causes", "remedies") for one in (folder / part).glob("*.py")]
    assert len(rules) > 20
    found = [one.name for one in rules if LIGHTNING.search(one.read_text(encoding="utf-8"))]
    assert found == ["loop_code.py"]


def test_a_run_in_a_plain_loop_proposes_its_own_class() -> None:
    """The diagnosis of a NaN batch in a plain PyTorch loop proposes an argument of `GradientWatch`."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for step in range(12):
            inputs = torch.randn(8, 4)
            if step == 10:
                inputs[3, 2] = float("nan")
            watch.batch(inputs)
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            watch.loss(loss)
            loss.backward()
            optimizer.step()
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "nonfinite-input"
    assert any('`GradientWatch(model, optimizer, on_explosion="skip")`' in one for one in diagnosis.remedies)
    assert not any("GradientExplosionMonitor" in one for one in diagnosis.remedies)
