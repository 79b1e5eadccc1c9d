"""A fault in how a plain loop computes its data is found in the batches after an incident, with its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack

from lightning_gradexplode import GradientWatch
from tests.torch_versions import needs_graph_values

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def trained(
    compute: Callable[[Tensor], Tensor], every: int = 3, watched: bool = True, folder: Path | None = None
) -> tuple[GradientWatch | None, nn.Linear]:
    """Train on data that are computed in the loop; every few batches, one row of the raw data holds a zero."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, log_dir=folder, report=folder is not None) if watched else None
    for step in range(1, 12):
        raw = torch.rand(8, 4) + 0.1
        if step % every == 0:
            raw[5, 2] = 0.0
        optimizer.zero_grad()
        target = compute(raw)
        loss = functional.mse_loss(model(raw), target)
        if watch is not None:
            watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return watch, model


@needs_graph_values
def test_the_operation_its_line_and_its_rows_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Console, report and diagnosis agree on what is known since the later batch."""
    watch, _ = trained(lambda raw: raw.log(), folder=tmp_path)
    assert watch is not None
    diagnosis = watch.diagnosis()
    watch.close()
    assert diagnosis is not None
    cause = diagnosis.causes[0]
    assert (diagnosis.step, cause.kind) == (2, "undefined-operation")
    assert "`log` at tests/engine/test_later_batches.py" in (cause.where or "")
    assert any("row 5" in one for one in cause.evidence)
    assert any("observed in a later batch" in one for one in cause.evidence)
    assert "undefined-operation" in caplog.text
    assert watch.report_folder is not None
    written = json.loads((watch.report_folder / "diagnosis.json").read_text())
    assert written["causes"][0]["kind"] == "undefined-operation"
    assert _get_current_function_mode_stack() == []  # type: ignore[no-untyped-call]


@needs_graph_values
def test_data_that_are_not_finite_are_no_fault_of_an_operation() -> None:
    """Nothing but the raw data is at fault, as before."""
    watch, _ = trained(lambda raw: torch.where(raw == 0, torch.tensor(torch.nan), raw))
    assert watch is not None
    diagnosis = watch.diagnosis()
    watch.close()
    assert diagnosis is not None
    assert "undefined-operation" not in {one.kind for one in diagnosis.causes if one.confidence > 0.4}


@needs_graph_values
def test_a_fault_that_does_not_return_stays_as_it_was() -> None:
    """Without such a batch afterwards the first diagnosis holds, and the weights are those of the run without it."""
    watch, model = trained(lambda raw: raw.log(), every=9)
    assert watch is not None
    diagnosis = watch.diagnosis()
    watch.close()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind in ("nonfinite-target", "unknown")
    _, other = trained(lambda raw: raw.log(), every=9, watched=False)
    assert torch.equal(model.weight.isnan(), other.weight.isnan())
