"""The charts of a report as static SVG, for pages that are written without ``plotly``."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from lightning_gradexplode.records import FloatArray
from lightning_gradexplode.report.axes import Values, log_ticks, tick_label
from lightning_gradexplode.report.charts import GradientSpread, Mark, Panel, TimeChart, is_sparse
from lightning_gradexplode.report.heatmap import colored, png
from lightning_gradexplode.report.rows import Rows
from lightning_gradexplode.report.rows import label as row_label

WIDTH = 600
"""Width of the drawing in its own units; a page scales it."""
LEFT, HEIGHT = 76, 130


def time_svg(chart: TimeChart) -> str:
    """Return panels with one time axis, for the steps around the incident."""
    first, last = chart.view
    shown = (chart.steps >= first) & (chart.steps <= last)
    xs = _scale(chart.steps[shown], first, last)
    parts = [_panel(panel, shown, xs, index * (HEIGHT + 30) + 20) for index, panel in enumerate(chart.panels)]
    bottom = len(chart.panels) * (HEIGHT + 30) + 10
    for panel_index, panel in enumerate(chart.panels):
        at = panel_index * (HEIGHT + 30) + 20
        crosses = _scale(panel.nonfinite[(panel.nonfinite >= first) & (panel.nonfinite <= last)], first, last)
        parts += [
            f'<text class="nonfinite" x="{x:.1f}" y="{at + 9}" text-anchor="middle">\u00d7</text>' for x in crosses
        ]
    parts += list(_marks(chart.marks, first, last, bottom))
    parts.append(f'<text x="{LEFT}" y="{bottom + 16}">step {first}</text>')
    parts.append(f'<text x="{WIDTH}" y="{bottom + 16}" text-anchor="end">{last}</text>')
    return _svg(parts, bottom + 24, "time chart")


def heatmap_svg(steps: Sequence[int], rows: Rows, marks: Sequence[Mark], view: tuple[int, int]) -> str:
    """Return the heat map of gradient norms, a row for each parameter, the first one executed on top."""
    shown = [place for place, step in enumerate(steps) if view[0] <= step <= view[1]]
    pixels, _, _ = colored(rows.norms[:, shown].T)
    row_height = max(6, min(16, 640 // max(len(rows.names), 1)))
    height, left = row_height * len(rows.names), 190
    data = base64.b64encode(png(pixels)).decode()
    parts = [
        f'<image x="{left}" y="10" width="{WIDTH - left}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    ]
    for place in rows.labeled(every=max(1, -(-12 // row_height))):
        text = escape(row_label(rows.names[place], 32))
        kind = "row marked" if place == rows.marked else "row"
        y = 10 + (place + 0.5) * row_height + 4
        parts.append(f'<text class="{kind}" x="{left - 6}" y="{y:.1f}" text-anchor="end">{text}</text>')
    if rows.marked is not None:
        y = 10 + rows.marked * row_height
        parts.append(f'<rect class="frame" x="{left}" y="{y}" width="{WIDTH - left}" height="{row_height}"/>')
    width = (WIDTH - left) / max(len(shown), 1)
    for mark in marks:
        if mark.is_line and view[0] <= mark.step <= view[1]:
            x = left + (int(np.searchsorted(np.asarray(steps)[shown], mark.step)) + 0.5) * width
            parts.append(_vertical(x, 10, height + 10, mark))
    parts.append(f'<text x="{left}" y="{height + 26}">step {view[0]}</text>')
    parts.append(f'<text x="{WIDTH}" y="{height + 26}" text-anchor="end">{view[1]}</text>')
    return _svg(parts, height + 34, "heat map of gradient norms")


def spread_svg(spreads: Sequence[GradientSpread]) -> str:
    """Return the distributions of one parameter's gradient elements at several steps."""
    logs = np.concatenate([spread.logs for spread in spreads] or [np.zeros(0)])
    low, high = (float(logs.min()) - 0.1, float(logs.max()) + 0.1) if len(logs) else (0.0, 1.0)
    top = max((float(spread.shares.max()) for spread in spreads if len(spread.shares)), default=1.0)
    parts = []
    for index, spread in enumerate(spreads, 1):
        xs, ys = _scale(spread.logs, low, high), 170 - spread.shares / top * 150
        parts.append(f'<path class="series-{index}" d="{_path(xs, ys)}"/>')
        parts.append(f'<text class="label-{index}" x="{LEFT}" y="{16 * index}">step {spread.step}</text>')
    for at, label in log_ticks(low, high):
        (x,) = _scale(np.array([at]), low, high)
        parts.append(f'<text x="{x:.1f}" y="190" text-anchor="middle">{label}</text>')
    return _svg(parts, 200, "distribution of the gradient elements")


def gain_svg(gains: Sequence[tuple[str, float]]) -> str:
    """Return bars of the gain of each module, on a logarithmic axis around 1."""
    top = max([abs(float(np.log10(gain))) for _, gain in gains] + [0.3])
    left, row_height = 190, 16
    middle = (WIDTH + left) / 2
    parts = []
    for place, (name, gain) in enumerate(gains):
        length = float(np.log10(gain)) / top * (WIDTH - left) / 2
        x, y = min(middle, middle + length), place * row_height + 6
        bar = f'x="{x:.1f}" y="{y}" width="{abs(length):.1f}" height="{row_height - 4}"'
        parts.append(
            f'<text x="{left - 6}" y="{y + 10}" text-anchor="end">{escape(row_label(name, 32))}</text>'
            f'<rect class="bar-{2 if gain > 1 else 1}" {bar}>'
            f"<title>{escape(name)}: times {gain:.3g}</title></rect>"
        )
    height = len(gains) * row_height + 8
    parts.append(f'<line class="axis" x1="{middle}" x2="{middle}" y1="0" y2="{height}"/>')
    for label, x in (
        (tick_label(float(f"{10**-top:.2g}")), left),
        ("1", middle),
        (tick_label(float(f"{10**top:.2g}")), WIDTH - 20),
    ):
        parts.append(f'<text x="{x:.1f}" y="{height + 14}" text-anchor="middle">{label}</text>')
    return _svg(parts, height + 20, "gain of each layer")


def _panel(panel: Panel, shown: Values, xs: FloatArray, top: int) -> str:
    axis = panel.axis

    def ys(positions: FloatArray) -> FloatArray:
        placed: FloatArray = top + HEIGHT - (positions - axis.low) / (axis.high - axis.low) * HEIGHT
        return placed

    parts = [f'<text class="title" x="{LEFT}" y="{top - 5}">{escape(panel.title)}</text>']
    offset = LEFT + 120
    for line in panel.lines if len(panel.lines) > 1 else ():
        parts.append(f'<text class="label-{line.color}" x="{offset}" y="{top - 5}">{escape(line.name)}</text>')
        offset += 120
    parts.append(f'<rect class="panel" x="{LEFT}" y="{top}" width="{WIDTH - LEFT}" height="{HEIGHT}"/>')
    if panel.band is not None:
        low, high = np.clip(axis.positions(np.array(panel.band)), axis.low, axis.high)
        y, height = float(ys(np.array([high]))[0]), float((high - low) / (axis.high - axis.low) * HEIGHT)
        parts.append(f'<rect class="band" x="{LEFT}" y="{y:.1f}" width="{WIDTH - LEFT}" height="{height:.1f}"/>')
    for at, label in axis.ticks:
        y = float(ys(np.array([at]))[0])
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for line in panel.lines:
        dash = " dashed" if line.is_dashed else ""
        positions = axis.positions(line.values)[shown]
        kept = np.isfinite(positions) if is_sparse(positions) else np.ones(len(positions), dtype=bool)
        path = _path(xs[kept], ys(positions[kept]))
        parts.append(f'<path class="series-{line.color}{dash}" d="{path}"/>')
    return "".join(parts)


def _marks(marks: Iterable[Mark], first: int, last: int, bottom: int) -> Iterable[str]:
    for mark in marks:
        if first <= mark.step <= last:
            (x,) = _scale(np.array([mark.step]), first, last)
            if mark.is_line:
                yield _vertical(x, 20, bottom, mark)
            else:
                # Responses are above findings, which may be at the same step.
                symbol, y = {"finding": ("\u25be", bottom), "response": ("\u2605", bottom - 12)}[mark.kind]
                yield (
                    f'<text class="{mark.kind}" x="{x:.1f}" y="{y}" text-anchor="middle">{symbol}'
                    f"<title>{escape(mark.text)}</title></text>"
                )


def _vertical(x: float, top: float, bottom: float, mark: Mark) -> str:
    return (
        f'<line class="mark {mark.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}">'
        f"<title>{escape(mark.text)}</title></line>"
    )


def _scale(values: Values, first: float, last: float) -> FloatArray:
    placed: FloatArray = LEFT + 4 + (values - first) / max(last - first, 1e-9) * (WIDTH - LEFT - 8)
    return placed


def _path(xs: FloatArray, ys: FloatArray) -> str:
    """Return a path through the finite points; a single value between unknown ones is a short line."""
    points = [(x, y) for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]
    parts = []
    for index, (x, y) in enumerate(points):
        if np.isfinite(y):
            before = index > 0 and np.isfinite(points[index - 1][1])
            after = index + 1 < len(points) and np.isfinite(points[index + 1][1])
            parts.append(f"{'L' if before else 'M'}{x:.1f} {y:.1f}" + ("" if before or after else "h3"))
    return "".join(parts)


def _svg(parts: Iterable[str], height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH + 6} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
