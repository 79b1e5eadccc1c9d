"""The figure for plotly.js of curves with one time axis."""

from __future__ import annotations

from html import escape

import numpy as np

from lightning_gradexplode.report.charts import Panel, TimeChart, is_sparse
from lightning_gradexplode.report.plotly_base import GRID, Figure, base_layout, cells, mark_line, ranges, step_ticks

_SYMBOLS = {"finding": "triangle-down", "response": "star"}


def time_figure(chart: TimeChart) -> Figure:
    """Return the figure of panels with one time axis."""
    count = len(chart.panels)
    gap = 0.06 if count > 1 else 0.0
    height = (1 - gap * (count - 1)) / max(count, 1)
    traces: list[Figure] = []
    layout: Figure = {
        **base_layout(140 * count + 100),
        "meta": ranges(chart.steps.tolist(), chart.view),
        "hovermode": "x",
        "legend": {"orientation": "h", "y": -0.28 / max(count, 1), "yanchor": "top", "x": 0},
        "annotations": [],
        "shapes": [{**mark_line(mark), "layer": "below"} for mark in chart.marks if mark.is_line],
        "xaxis": {
            **GRID,
            "range": [chart.view[0] - 0.5, chart.view[1] + 0.5],
            "anchor": f"y{count}" if count > 1 else "y",
            **step_ticks(chart.steps.tolist()),
        },
    }
    for index, panel in enumerate(chart.panels):
        suffix = "" if index == 0 else str(index + 1)
        top = 1 - index * (height + gap)
        layout[f"yaxis{suffix}"] = {
            **GRID,
            "domain": [max(top - height, 0.0), top],
            "range": [panel.axis.low, panel.axis.high],
            "tickvals": [at for at, _ in panel.axis.ticks],
            "ticktext": [label for _, label in panel.axis.ticks],
            "fixedrange": True,
        }
        layout["annotations"].append(_panel_title(panel.title, top))
        traces += _traces(chart, panel, f"y{suffix}")
        if panel.band is not None:
            layout["shapes"].append(_band(panel, f"y{suffix}"))
    if chart.panels:
        traces += [_points(chart, kind) for kind in _SYMBOLS if any(mark.kind == kind for mark in chart.marks)]
    return {"data": traces, "layout": layout}


def _panel_title(title: str, top: float) -> Figure:
    common = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False}
    return {**common, "text": f"<b>{title}</b>", "x": 0, "y": top, "font": {"size": 12}}


def _traces(chart: TimeChart, panel: Panel, axis: str) -> list[Figure]:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers" if is_sparse(positions := panel.axis.positions(line.values)) else "lines",
            "marker": {"size": 4},
            "connectgaps": is_sparse(positions),
            "name": line.name,
            "showlegend": len(panel.lines) > 1,
            "x": chart.steps.tolist(),
            "y": cells(positions[None])[0],
            "customdata": [f"{value:.4g}" for value in line.values.tolist()],
            "hovertemplate": f"{line.name}: %{{customdata}}<extra></extra>",
            "line": {
                "color": f"var(--series-{line.color})",
                "width": 1.8,
                "dash": "dash" if line.is_dashed else "solid",
            },
            "yaxis": axis,
        }
        for line in panel.lines
    ]
    if len(panel.nonfinite):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{panel.title.lower()} is NaN or infinite",
                "x": panel.nonfinite.tolist(),
                "y": [panel.axis.high] * len(panel.nonfinite),
                "marker": {"symbol": "x", "size": 8, "color": "var(--nonfinite)"},
                "hovertemplate": "NaN or infinite<extra></extra>",
                "yaxis": axis,
                "cliponaxis": False,
            }
        )
    return traces


def _points(chart: TimeChart, kind: str) -> Figure:
    """Return the symbols of findings or responses, at the lower end of the first panel."""
    marks = [mark for mark in chart.marks if mark.kind == kind]
    axis = chart.panels[0].axis
    # Responses are above findings, which may be at the same step.
    height = axis.low + (0.12 * (axis.high - axis.low) if kind == "response" else 0.0)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": {"finding": "findings", "response": "responses"}[kind],
        "x": [mark.step for mark in marks],
        "y": [height] * len(marks),
        "text": [escape(mark.text) for mark in marks],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": _SYMBOLS[kind], "size": 9, "color": f"var(--{kind})"},
        "yaxis": "y",
        "cliponaxis": False,
    }


def _band(panel: Panel, axis: str) -> Figure:
    assert panel.band is not None
    low, high = panel.axis.positions(np.array(panel.band)).tolist()
    return {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "yref": axis,
        "y0": max(low, panel.axis.low),
        "y1": min(high, panel.axis.high),
        "fillcolor": "var(--band)",
        "line": {"width": 0},
        "layer": "below",
    }
