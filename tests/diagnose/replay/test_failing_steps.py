"""The replay names the operation, line, module and rows that each of many failing steps is known to begin with."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from lightning_gradexplode.diagnose.replay import ReplayStep, replay_step
from tests.diagnose.replay.failing_steps import STEPS


@pytest.mark.parametrize("name", STEPS)
def test_the_fault_is_named(name: str) -> None:
    """Operation, phase, line, and where they are known rows and module, are those of the fault that was built in."""
    case = STEPS[name]
    torch.manual_seed(0)
    step = ReplayStep(case.module(), case.step, case.batch(), context=case.context or nullcontext)

    replay = replay_step(step, failed=case.failed)

    assert (replay.status, replay.reason) == ("reproduced", "")
    first = replay.first
    assert first is not None
    assert first.name in case.operations
    assert (first.phase, first.result) == (case.phase, case.result)
    assert (first.code or "").endswith("# fault")
    assert (replay.hidden.name if replay.hidden else None) == case.hidden
    if case.rows is not None:
        assert first.rows == case.rows
    if case.where is not None:
        assert first.module == case.where


@pytest.mark.parametrize("name", STEPS)
def test_another_failure_than_that_of_the_run_is_not_trusted(name: str) -> None:
    """A replay in which something else fails than in the run has the status "not-reproduced"."""
    case = STEPS[name]
    torch.manual_seed(0)
    step = ReplayStep(case.module(), case.step, case.batch(), context=case.context or nullcontext)

    replay = replay_step(step, failed="gradient" if case.failed == "loss" else "loss")

    assert replay.status == "not-reproduced"
    assert replay.reason
