"""The charts of a report as figures of plotly.js, in plain dictionaries.

Colors are names of the page's style variables, such as ``"var(--series-1)"``; the page's script replaces them by what
they are in the light or the dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from lightning_gradexplode.report.axes import tick_label
from lightning_gradexplode.report.charts import GradientSpread, Mark, Panel, TimeChart, is_sparse
from lightning_gradexplode.report.rows import Rows, color_range, label, positive_logs

Figure = dict[str, Any]

_SYMBOLS = {"finding": "triangle-down", "response": "star"}
_GRID = {"gridcolor": "var(--grid)", "zeroline": False, "linecolor": "var(--grid)"}


def script() -> str | None:
    """Return the source of plotly.js from the installed ``plotly``; None where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError:
        return None
    return str(get_plotlyjs())


def time_figure(chart: TimeChart) -> Figure:
    """Return the figure of panels with one time axis."""
    count = len(chart.panels)
    gap = 0.06 if count > 1 else 0.0
    height = (1 - gap * (count - 1)) / max(count, 1)
    traces: list[Figure] = []
    layout: Figure = {
        **_layout(140 * count + 100),
        "meta": _ranges(chart.steps.tolist(), chart.view),
        "hovermode": "x",
        "legend": {"orientation": "h", "y": -0.28 / max(count, 1), "yanchor": "top", "x": 0},
        "annotations": [],
        "shapes": [_line(mark) for mark in chart.marks if mark.kind in ("since", "critical")],
        "xaxis": {
            **_GRID,
            "range": [chart.view[0] - 0.5, chart.view[1] + 0.5],
            "anchor": f"y{count}" if count > 1 else "y",
            "tickformat": "d",
        },
    }
    for index, panel in enumerate(chart.panels):
        suffix = "" if index == 0 else str(index + 1)
        top = 1 - index * (height + gap)
        layout[f"yaxis{suffix}"] = {
            **_GRID,
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
    traces += [_points(chart, kind, "y") for kind in _SYMBOLS if any(mark.kind == kind for mark in chart.marks)]
    return {"data": traces, "layout": layout}


def heatmap_figure(steps: Sequence[int], rows: Rows, marks: Sequence[Mark], view: tuple[int, int]) -> Figure:
    """Return the heat map of gradient norms, a row for each parameter, the first one executed on top."""
    logs = positive_logs(rows.norms)
    low, high = color_range(logs)
    places = list(range(len(rows.names)))
    every = max(1, -(-len(places) // 40))
    shown = [place for place in places if place % every == 0 or place == rows.culprit]
    if rows.culprit is not None:
        shown = [place for place in shown if place == rows.culprit or abs(place - rows.culprit) >= every]
    names = [escape(name) for name in rows.names]
    common = {"type": "heatmap", "x": list(map(int, steps)), "y": names}
    cells = {
        **common,
        "name": "norm",
        "z": _cells(np.where(rows.norms == 0, low, logs)),
        "zmin": low,
        "zmax": high,
        "colorscale": "Cividis",
        "colorbar": _scale_of(low, high),
        "hovertemplate": "%{y}<br>step %{x}: 10^%{z:.2f}<extra></extra>",
    }
    bad = ~np.isfinite(rows.norms)
    nonfinite = {
        **common,
        "name": "NaN or infinite",
        "z": [[1 if one else None for one in row] for row in bad.tolist()],
        "colorscale": [[0, "var(--nonfinite)"], [1, "var(--nonfinite)"]],
        "showscale": False,
        "hovertemplate": "%{y}<br>step %{x}: NaN or infinite<extra></extra>",
    }
    layout: Figure = {
        **_layout(max(220, min(17 * len(places), 900)) + 90),
        "meta": _ranges(steps, view),
        "xaxis": {
            "range": [view[0] - 0.5, view[1] + 0.5],
            "showgrid": False,
            "zeroline": False,
            "tickformat": "d",
        },
        "yaxis": {
            "type": "category",
            "range": [len(places) - 0.5, -0.5],
            "tickvals": shown,
            "ticktext": [_label(rows, place) for place in shown],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        },
        "shapes": [_line(mark) for mark in marks if mark.kind in ("since", "critical")],
    }
    if rows.culprit is not None:
        layout["shapes"].append(
            {
                "type": "rect",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": rows.culprit - 0.5,
                "y1": rows.culprit + 0.5,
                "line": {"color": "var(--critical)", "width": 2},
            }
        )
    return {"data": [cells, *([nonfinite] if bad.any() else [])], "layout": layout}


def spread_figure(spreads: Sequence[GradientSpread]) -> Figure:
    """Return the distributions of one parameter's gradient elements at several steps."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hvh", "color": f"var(--series-{index})"},
            "fill": "tozeroy",
            "name": f"step {spread.step}",
            "x": np.round(spread.logs, 3).tolist(),
            "y": np.round(spread.shares, 6).tolist(),
            "hovertemplate": "10^%{x:.2f}: %{y:.2%}<extra></extra>",
        }
        for index, spread in enumerate(spreads, 1)
    ]
    every = [spread.logs for spread in spreads if len(spread.logs)]
    low, high = math.floor(min(logs[0] for logs in every)), math.ceil(max(logs[-1] for logs in every))
    powers = list(range(low, high + 1, max(1, (high - low) // 8)))
    layout = {
        **_layout(280),
        "legend": {"orientation": "h", "y": 1.14, "x": 0},
        "xaxis": {**_GRID, "tickvals": powers, "ticktext": [tick_label(10.0**power) for power in powers]},
        "yaxis": {**_GRID, "tickformat": ".0%", "rangemode": "tozero"},
    }
    return {"data": traces, "layout": layout}


def gain_figure(gains: Sequence[tuple[str, float]]) -> Figure:
    """Return bars of the gain of each module, on a logarithmic axis around 1."""
    logs = [float(np.log10(gain)) for _, gain in gains]
    top = max([abs(one) for one in logs] + [0.3])
    places = list(range(len(gains)))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [round(one, 4) for one in logs],
        "y": places,
        "customdata": [[escape(name), f"{gain:.3g}"] for name, gain in gains],
        "marker": {"color": ["var(--series-2)" if one > 0 else "var(--series-1)" for one in logs]},
        "hovertemplate": "%{customdata[0]}: times %{customdata[1]}<extra></extra>",
    }
    ticks = range(-int(top), int(top) + 1, max(1, int(top) // 3))
    layout = {
        **_layout(max(160, 16 * len(gains)) + 80),
        "showlegend": False,
        "xaxis": {
            **_GRID,
            "range": [-top * 1.1, top * 1.1],
            "tickvals": list(ticks),
            "ticktext": [tick_label(10.0**at) for at in ticks],
        },
        "yaxis": {
            "range": [len(gains) - 0.5, -0.5],
            "tickvals": places,
            "ticktext": [escape(label(name, 32)) for name, _ in gains],
            "automargin": True,
        },
    }
    return {"data": [bars], "layout": layout}


def _ranges(steps: Sequence[int], view: tuple[int, int]) -> Figure:
    """Return the ranges of steps that the page's buttons show."""
    return {"view": [view[0] - 0.5, view[1] + 0.5], "all": [steps[0] - 0.5, steps[-1] + 0.5]}


def _layout(height: int) -> Figure:
    return {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 24, "b": 34},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--muted)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--text)", "size": 12, "family": "system-ui, sans-serif"},
        "hoverlabel": {"font": {"family": "system-ui, sans-serif"}},
    }


def _panel_title(title: str, top: float) -> Figure:
    common = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False}
    return {**common, "text": f"<b>{title}</b>", "x": 0, "y": top, "font": {"size": 12}}


def _scale_of(low: float, high: float) -> Figure:
    """Return the legend of the colors, above the heat map."""
    ticks = list(range(math.ceil(low), math.floor(high) + 1, max(1, int(high - low) // 4)))
    return {
        "orientation": "h",
        "y": 1,
        "yanchor": "bottom",
        "x": 1,
        "xanchor": "right",
        "len": 240,
        "lenmode": "pixels",
        "thickness": 10,
        "outlinewidth": 0,
        "tickvals": ticks,
        "ticktext": [tick_label(10.0**at) for at in ticks],
    }


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
            "y": _cells(positions[None])[0],
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


def _points(chart: TimeChart, kind: str, axis: str) -> Figure:
    marks = [mark for mark in chart.marks if mark.kind == kind]
    low = chart.panels[0].axis.low if chart.panels else 0.0
    return {
        "type": "scatter",
        "mode": "markers",
        "name": {"finding": "findings", "response": "responses"}[kind],
        "x": [mark.step for mark in marks],
        "y": [low] * len(marks),
        "text": [escape(mark.text) for mark in marks],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": _SYMBOLS[kind], "size": 9, "color": f"var(--{kind})"},
        "yaxis": axis,
        "cliponaxis": False,
    }


def _line(mark: Mark) -> Figure:
    return {
        "type": "line",
        "x0": mark.step,
        "x1": mark.step,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {
            "color": "var(--critical)",
            "width": 1.5,
            "dash": "dot" if mark.kind == "since" else "solid",
        },
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


def _cells(table: Any) -> list[list[float | None]]:
    """Return numbers as JSON holds them, with two decimals in three; None for NaN."""
    return [[round(one, 3) if np.isfinite(one) else None for one in row] for row in np.asarray(table).tolist()]


def _label(rows: Rows, place: int) -> str:
    name = escape(label(rows.names[place], 38))
    return f"<b>\u25b6 {name}</b>" if place == rows.culprit else name
