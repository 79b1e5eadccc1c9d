"""The charts of a report as data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.records import Activation, Attempt, Histogram, History, Replay, ReportContent
from lightning_gradexplode.report import svg_charts
from lightning_gradexplode.report.charts import gradient_spread, layer_gains, time_chart
from lightning_gradexplode.report.plotly_bars import gain_figure, spread_figure
from lightning_gradexplode.report.plotly_heatmap import heatmap_figure
from lightning_gradexplode.report.plotly_time import time_figure
from lightning_gradexplode.report.rows import rows
from lightning_gradexplode.report.svg_charts import time_svg
from tests.report import examples

plotly = pytest.importorskip("plotly.graph_objects")

COLOR = re.compile(r'"var\(--[a-z0-9-]+\)"')


def figures(content: ReportContent) -> list[dict[str, Any]]:
    """Return every figure of a content."""
    where = content.diagnosis.where if content.diagnosis else None
    found = []
    for history in content.evidence.history:
        chart = time_chart(history, content)
        assert chart is not None
        table = rows(history, content.evidence, where)
        found.append(time_figure(chart))
        found.append(heatmap_figure(history.step.tolist(), table, chart.marks, chart.view))
    if content.gradients:
        found.append(spread_figure([gradient_spread(*one) for one in content.gradients]))
        found.append(gain_figure(layer_gains(content)))
    return found


@pytest.mark.parametrize(
    "content",
    [examples.growing(), examples.at_once(), examples.negative_loss(), examples.half_precision(), examples.healthy()],
    ids=lambda content: content.run_name,
)
def test_plotly_accepts_everything_in_the_figures(content: ReportContent) -> None:
    """Its own classes refuse unknown names and values; the page's colors are replaced by one of plotly's."""
    found = list(figures(content))
    assert found
    for figure in found:
        text = json.dumps(figure, allow_nan=False)
        assert plotly.Figure(json.loads(COLOR.sub('"#123456"', text))).data


def test_a_negative_loss_is_in_the_chart() -> None:
    """Every finite loss has a place on its axis, whatever its sign."""
    content = examples.negative_loss()
    chart = time_chart(content.evidence.history[0], content)
    assert chart is not None
    loss = chart.panels[0]
    assert loss.title == "Loss"
    assert np.isfinite(loss.axis.positions(loss.lines[0].values)).all()


def test_an_explosion_of_one_step_fills_the_chart() -> None:
    """The steps before it are shown, the step whose loss is NaN is marked in the panels, and one line marks it."""
    content = examples.at_once()
    chart = time_chart(content.evidence.history[0], content)
    assert chart is not None
    assert chart.view == (0, 39)
    assert [panel.nonfinite.tolist() for panel in chart.panels[:2]] == [[39], [39]]
    assert [mark.kind for mark in chart.marks if mark.is_line] == ["critical"]
    assert {mark.kind for mark in chart.marks} == {"critical", "finding"}


def test_an_incident_before_the_recorded_steps_has_no_line() -> None:
    """In a long run the steps of an early incident are recorded no more, and no caption names a line."""
    content = examples.growing(5)
    (history,) = content.evidence.history
    late = replace(history, step=history.step + 10_000)
    chart = time_chart(late, replace(content, evidence=replace(content.evidence, history=(late,))))
    assert chart is not None
    assert not [mark for mark in chart.marks if mark.is_line]


def test_a_slow_rise_before_the_first_sign_is_in_the_view() -> None:
    """At least a hundred steps before the first sign are shown at first, and all after it."""
    content = examples.growing(5, 195)
    (history,) = content.evidence.history
    chart = time_chart(history, content)
    assert chart is not None
    assert chart.view == (95, history.step[-1])


def test_steps_after_all_was_lost_are_not_in_the_view() -> None:
    """A run that goes on with NaN for long is shown up to ten steps after its last finite loss or gradient norm."""
    content = examples.at_once()
    (history,) = content.evidence.history
    rest = np.full(200, math.nan)
    values = {name: np.append(series, rest) for name, series in history.values.items()}
    steps = np.arange(history.step[0], history.step[-1] + 201)
    longer = replace(history, step=steps, values=values, parameter_grad_norm=np.zeros((0, 0), dtype=np.float32))
    chart = time_chart(longer, content)
    assert chart is not None
    assert chart.steps[-1] == 239
    assert chart.view == (0, 49)


def test_a_response_is_drawn_above_a_finding_of_its_step() -> None:
    """The symbols of one step do not cover each other, interactive or plain."""
    content = examples.at_once()
    attempt = Attempt(step=39, action="stop", detail="training is stopped")
    content = replace(content, evidence=replace(content.evidence, attempts=(attempt,)))
    chart = time_chart(content.evidence.history[0], content)
    assert chart is not None
    points = {one["name"]: one for one in time_figure(chart)["data"]}
    assert points["responses"]["x"][0] in points["findings"]["x"]
    assert points["responses"]["y"][0] > points["findings"]["y"][0]
    heights = dict(re.findall(r'<text class="(finding|response)" x="[^"]+" y="(\d+)"', time_svg(chart)))
    assert int(heights["response"]) < int(heights["finding"]) - 10


def test_all_panels_of_a_run_have_one_time_axis() -> None:
    """Loss, norms with the clip value, update ratio, learning rate and scale are below each other."""
    content = examples.half_precision()
    chart = time_chart(content.evidence.history[0], content)
    assert chart is not None
    titles = [panel.title for panel in chart.panels]
    assert titles == ["Loss", "Gradient norm", "Update ratio", "Learning rate", "Loss scale"]
    figure = time_figure(chart)
    assert [key for key in figure["layout"] if key.startswith("xaxis")] == ["xaxis"]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e23])
def test_a_distribution_counts_every_element_once(scale: float) -> None:
    """Shares add up to that of the elements that are finite and not zero, and the middle is where it is."""
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * scale
    values[:100] = 0.0
    values[100] = math.nan
    spread = gradient_spread(3, measure_histogram(values))
    assert spread.shares.sum() == pytest.approx(1 - 101 / 5000)
    middle = float((spread.logs * spread.shares).sum() / spread.shares.sum())
    truth = values[101:].abs().log10().mean().item()
    assert middle == pytest.approx(truth, abs=0.05)


def test_one_element_is_drawn() -> None:
    """A single bin stands between two empty ones, so that the line through them has a length."""
    spread = gradient_spread(3, measure_histogram(torch.tensor([2.0])))
    assert spread.shares.tolist() == [0.0, 1.0, 0.0]
    assert spread.logs[0] < math.log10(2.0) < spread.logs[2]
    (trace,) = spread_figure([spread])["data"]
    assert len(set(trace["x"])) == 3
    assert svg_charts.spread_svg([spread]).count("L") == 2


def test_the_distribution_of_nothing_is_empty() -> None:
    """A tensor without elements, or with nothing but zeros, raises no error."""
    assert len(gradient_spread(0, Histogram.merged(())).logs) == 0
    assert len(gradient_spread(0, measure_histogram(torch.zeros(5))).logs) == 0


def test_gains_come_from_the_replay_where_modules_were_not_measured() -> None:
    """The factor at a layer is the gradient at the layer before over the one at its own output."""
    layers = (("a", 8.0), ("b", 2.0), ("c", 1.0))
    activations = tuple(Activation(name, "Linear", 1.0, 1.0, gradient_norm=norm) for name, norm in layers)
    content = examples.at_once()
    evidence = replace(content.evidence, replay=Replay("finite", activations=activations))
    gains = layer_gains(replace(content, evidence=evidence))
    assert gains == [("b", 4.0), ("c", 2.0)]


def test_of_many_layers_the_strongest_gains_are_kept() -> None:
    """However many modules there are, the chart has few bars, and the largest gain is one of them."""
    content = examples.growing(1000)
    gains = layer_gains(content)
    assert len(gains) <= 60
    assert max(gain for _, gain in gains) == 6.0


def test_a_loss_that_was_not_measured_is_not_called_nan() -> None:
    """Of an optimizer whose loss is not known there is no panel of it, whatever else was found."""
    content = examples.growing()
    history = content.evidence.history[0]
    values = {**history.values, "loss": np.full(len(history.step), np.nan)}
    chart = time_chart(replace(history, values=values), content)
    assert chart is not None
    assert "Loss" not in [panel.title for panel in chart.panels]
    nonfinite = replace(content, findings=(replace(content.findings[0], sign="nonfinite-loss"),))
    chart = time_chart(replace(history, values=values), nonfinite)
    assert chart is not None
    assert len(chart.panels[0].nonfinite) > 0


def test_a_step_that_ended_before_its_backward_pass_has_no_gradients_that_are_nan() -> None:
    """Such as one that raised an exception: it has a cross for its loss, but none for its gradient and no column."""
    content = examples.at_once()
    (history,) = content.evidence.history
    passes = np.ones(len(history.step))
    assert _crosses_and_columns(content, replace(history, values={**history.values, "backward_passes": passes})) == 1
    passes[-1] = np.nan
    assert _crosses_and_columns(content, replace(history, values={**history.values, "backward_passes": passes})) == 0


def _crosses_and_columns(content: ReportContent, history: History) -> int:
    """Return how often the last step is shown as one with gradients that are NaN, if charts and heat map agree."""
    chart = time_chart(history, content)
    assert chart is not None
    loss, norm = (next(one for one in chart.panels if one.title == title) for title in ("Loss", "Gradient norm"))
    assert loss.nonfinite.tolist() == [history.step[-1]]
    shown = history.with_gradients()
    assert len(norm.nonfinite) == int(shown.step[-1] == history.step[-1])
    return len(norm.nonfinite)


def test_losses_that_the_module_logged_stand_for_one_that_is_not_known() -> None:
    """As in manual optimization, where several losses have gradients."""
    content = examples.growing()
    history = content.evidence.history[0]
    steps = len(history.step)
    logged = {"logged/loss_critic": np.linspace(-1, -50, steps), "logged/accuracy": np.ones(steps)}
    values = {**history.values, "loss": np.full(steps, np.nan), **logged}
    chart = time_chart(replace(history, values=values), content)
    assert chart is not None
    assert chart.panels[0].title == "Loss"
    assert [line.name for line in chart.panels[0].lines] == ["loss_critic"]


def test_a_single_step_is_drawn() -> None:
    """A line through one point has no length, so that the point itself is shown, at a tick of its step."""
    content = examples.healthy()
    history = content.evidence.history[0]
    first = replace(
        history,
        step=history.step[:1],
        values={name: values[:1] for name, values in history.values.items()},
        parameter_grad_norm=history.parameter_grad_norm[:1],
    )
    chart = time_chart(first, content)
    assert chart is not None
    figure = time_figure(chart)
    assert all(trace["mode"] == "lines+markers" for trace in figure["data"])
    assert figure["layout"]["xaxis"]["tickvals"] == first.step.tolist()
