"""Remedies name the classes and calls of the training loop that the user has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gradexplode import GradientWatch
from lightning_gradexplode.diagnose.wording import in_code_of
from lightning_gradexplode.records import Cause, Diagnosis, RunFacts

REMEDIES = (
    'leave out the update of such a batch and go on: `GradientExplosionMonitor(on_explosion="skip")`',
    'compute in float32: `Trainer(precision="32-true")`, or keep float32 weights with `precision="bf16-mixed"`',
    'load the state of the optimizer with the weights: `trainer.fit(model, ckpt_path="last.ckpt")`',
    "divide each loss, so that the sum is an average: `self.manual_backward(loss / 4)`",
)


def _written(monitor: str) -> tuple[str, ...]:
    diagnosis = Diagnosis(3, "", None, None, (Cause("unknown", None, (), 0.0, REMEDIES),), REMEDIES)
    changed = in_code_of(RunFacts(monitor=monitor), diagnosis)
    assert changed.causes[0].remedies == changed.remedies
    return changed.remedies


@pytest.mark.parametrize(
    ("monitor", "codes"),
    [
        (
            "GradientWatch",
            (
                'GradientWatch(model, optimizer, on_explosion="skip")',
                "model.float()",
                'optimizer.load_state_dict(checkpoint["optimizer"])',
                "`(loss / 4).backward()`",
            ),
        ),
        (
            "FabricWatch",
            (
                'FabricWatch(fabric, model, optimizer, on_explosion="skip")',
                'Fabric(precision="32-true")',
                "fabric.load(",
                "`fabric.backward(loss / 4)`",
            ),
        ),
        (
            "GradientExplosionTrainerCallback",
            (
                'GradientExplosionTrainerCallback(on_explosion="skip")',
                "TrainingArguments(fp16=False)",
                "trainer.train(resume_from_checkpoint=True)",
                "`(loss / 4).backward()`",
            ),
        ),
    ],
)
def test_remedies_are_in_the_code_of_the_users_training_loop(monitor: str, codes: tuple[str, ...]) -> None:
    """Every remedy names the class that the user has, and none names Lightning's Trainer or monitor."""
    remedies = _written(monitor)
    for remedy, code in zip(remedies, codes, strict=True):
        assert code in remedy
        assert "GradientExplosionMonitor" not in remedy
        assert " `Trainer(" not in remedy


def test_a_lightning_run_keeps_its_remedies() -> None:
    """In Lightning the remedies are what the rules have written."""
    assert _written("GradientExplosionMonitor") == REMEDIES


def test_a_subclass_of_the_watch_counts_as_one_of_a_plain_loop() -> None:
    """A name that is not known is that of a user's own subclass of `GradientWatch`."""
    assert _written("MyWatch") == _written("GradientWatch")


def test_a_plain_loop_is_told_of_its_own_class() -> None:
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
