"""The benchmark for GPUs runs to its end, which can be seen on a processor, where it measures nothing of interest."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks import overhead_cuda


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_row_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of training and each kernel has a row, and no monitor is switched off."""
    monkeypatch.setattr(overhead_cuda, "WARM", 2)
    monkeypatch.setenv("WANDB_SILENT", "true")
    output = io.StringIO()
    console = Console(file=output, width=140)
    overhead_cuda.measure(console, 8, "cpu", {"tiny": 16}, (2, 4), 1 << 12)
    printed = output.getvalue()
    for name in (*overhead_cuda.monitors(), *overhead_cuda.counters(), "no callback, again", "wandb.watch"):
        assert name in printed, name
    assert "is off" not in printed
