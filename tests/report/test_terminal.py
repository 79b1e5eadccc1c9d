"""A report in the terminal."""

from __future__ import annotations

from lightning_gradexplode.report.terminal import BARS, NONFINITE, report_lines
from tests.report import examples


def curve_of(lines: list[str], name: str) -> str:
    """Return the curve of a quantity, without its name and its range."""
    (line,) = (line for line in lines if line.split()[:1] == [name])
    return line.split()[1]


def test_a_step_whose_loss_is_nan_is_a_cross() -> None:
    """The loss is finite up to the last step, at which it is NaN; the learning rate is finite throughout."""
    lines = list(report_lines(examples.at_once(), 200))
    loss = curve_of(lines, "loss")
    assert loss[-1] == NONFINITE
    assert set(loss[:-1]) <= set(BARS)
    assert set(curve_of(lines, "learning_rate")) <= set(BARS)
