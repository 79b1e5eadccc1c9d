"""The figure for plotly.js of the heat map of gradient norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from lightning_gradexplode.report.axes import tick_label
from lightning_gradexplode.report.charts import Mark
from lightning_gradexplode.report.plotly_base import Figure, base_layout, cells, mark_line, ranges, step_ticks
from lightning_gradexplode.report.rows import Rows, color_range, label, positive_logs


def heatmap_figure(steps: Sequence[int], rows: Rows, marks: Sequence[Mark], view: tuple[int, int]) -> Figure:
    """Return the heat map of gradient norms, a row for each parameter, the first one executed on top."""
    logs = positive_logs(rows.norms)
    low, high = color_range(logs)
    names = [escape(name) for name in rows.names]
    common = {"type": "heatmap", "x": list(map(int, steps)), "y": names}
    norms = {
        **common,
        "name": "norm",
        "z": cells(np.where(rows.norms == 0, low, logs)),
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
    return {"data": [norms, *([nonfinite] if bad.any() else [])], "layout": _layout(steps, rows, marks, view)}


def _layout(steps: Sequence[int], rows: Rows, marks: Sequence[Mark], view: tuple[int, int]) -> Figure:
    """Return axes, marks and the frame of the marked row."""
    count = len(rows.names)
    shown = rows.labeled(every=max(1, -(-count // 40)))
    layout: Figure = {
        **base_layout(max(220, min(17 * count, 900)) + 90),
        "meta": ranges(steps, view),
        "xaxis": {
            "range": [view[0] - 0.5, view[1] + 0.5],
            "showgrid": False,
            "zeroline": False,
            **step_ticks(steps),
        },
        "yaxis": {
            "type": "category",
            "range": [count - 0.5, -0.5],
            "tickvals": shown,
            "ticktext": [_label(rows, place) for place in shown],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        },
        "shapes": [mark_line(mark) for mark in marks if mark.is_line],
    }
    if rows.marked is not None:
        layout["shapes"].append(_frame(rows.marked, width=2 if count <= 60 else 1))
    return layout


def _frame(row: int, width: int) -> Figure:
    """Return a frame around a row."""
    return {
        "type": "rect",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": row - 0.5,
        "y1": row + 0.5,
        "line": {"color": "var(--critical)", "width": width},
    }


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


def _label(rows: Rows, place: int) -> str:
    name = escape(label(rows.names[place], 38))
    return f"<b>\u25b6 {name}</b>" if place == rows.marked else name
