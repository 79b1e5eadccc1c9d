"""The figures for plotly.js of distributions of gradient elements, and of the gain of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from lightning_gradexplode.report.axes import log_ticks
from lightning_gradexplode.report.charts import GradientSpread
from lightning_gradexplode.report.plotly_base import GRID, Figure, base_layout
from lightning_gradexplode.report.rows import label


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
    ticks = log_ticks(min(logs[0] for logs in every) - 0.1, max(logs[-1] for logs in every) + 0.1)
    layout = {
        **base_layout(280),
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.14, "x": 0},
        "xaxis": {**GRID, **_ticks(ticks)},
        "yaxis": {**GRID, "tickformat": ".0%", "rangemode": "tozero"},
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
    layout = {
        **base_layout(max(160, 16 * len(gains)) + 80),
        "showlegend": False,
        "xaxis": {
            **GRID,
            "range": [-top * 1.1, top * 1.1],
            **_ticks(log_ticks(-top * 1.1, top * 1.1)),
        },
        "yaxis": {
            "range": [len(gains) - 0.5, -0.5],
            "tickvals": places,
            "ticktext": [escape(label(name, 32)) for name, _ in gains],
            "automargin": True,
        },
    }
    return {"data": [bars], "layout": layout}


def _ticks(ticks: Sequence[tuple[float, str]]) -> Figure:
    return {"tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks]}
