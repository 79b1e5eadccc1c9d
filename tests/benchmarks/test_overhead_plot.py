"""The program that draws the cost of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from benchmarks import overhead, overhead_plot
from benchmarks.overhead_models import Model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_is_drawn_was_measured(tmp_path: Path) -> None:
    """Each number of parameters and of processes has its cost, and the file is a picture of them."""
    pytest.importorskip("matplotlib").use("agg")
    costs = overhead_plot.measured([Model([nn.Linear(4, 4)], 4)], steps=30)
    assert set(costs) == {overhead_plot.MONITOR, overhead.CLIP, overhead.READ}
    assert all(cost > 0 for (cost,) in costs.values())
    exchanged = [overhead_plot.of_exchange(size, 3, turns=2) for size in (2, 64)]
    assert min(exchanged) > 0
    panels = [("parameters", [20], costs), ("processes", [2, 64], {"imitated": exchanged})]
    overhead_plot.draw(tmp_path / "cost.svg", panels)
    assert "<svg" in (tmp_path / "cost.svg").read_text()
