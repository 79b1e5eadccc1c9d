"""Remedies name the classes and calls of the training loop that the user has."""

from __future__ import annotations

import pytest

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
