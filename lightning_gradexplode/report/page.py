"""The report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np

from lightning_gradexplode.records import Evidence, History, Operand, OptimizerFacts, ReportContent, summary
from lightning_gradexplode.records.html import with_code
from lightning_gradexplode.report import plotly_bars, plotly_base, plotly_heatmap, plotly_time, svg_charts
from lightning_gradexplode.report.charts import TimeChart, gradient_spread, layer_gains, time_chart
from lightning_gradexplode.report.rows import Rows, content_rows, find_place

MAX_FINDINGS = 200
"""Number of findings that a page lists, the latest ones."""

_TEMPLATE = files(__package__).joinpath("page.html.jinja")
"""The template, which need not be a file: the package may be in a zip archive."""


def page(content: ReportContent) -> str:
    """Return the HTML of a report. Charts are interactive if ``plotly`` is installed, else static SVG."""
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = lambda text: Markup(with_code(text))
    environment.filters["number"] = number
    plotly = plotly_base.script()
    times = [time_chart(history, content) for history in content.evidence.history]
    charts = _charts(content, times, is_plain=plotly is None)
    figures = {key: value for key, value in charts.items() if isinstance(value, dict)}
    diagnosis = content.diagnosis
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        content=content,
        diagnosis=diagnosis,
        evidence=content.evidence,
        last_step=last_step(content.evidence),
        replay=content.evidence.replay,
        verdict=summary.verdict(diagnosis, content.findings),
        title=summary.title(diagnosis, content.evidence.findings) if diagnosis else "No incident",
        since=summary.since(diagnosis, content.evidence.findings) if diagnosis else "",
        place=summary.place(diagnosis) if diagnosis else "",
        remedies=summary.remedies(diagnosis) if diagnosis else [],
        done=summary.actions(content.evidence.attempts) or [summary.done((), content.evidence.run.on_explosion)],
        facts=facts(content),
        optimizers=[optimizer_text(one) for one in content.evidence.run.optimizers],
        charts={key: Markup(value) if isinstance(value, str) else None for key, value in charts.items()},
        several=len(content.evidence.history) > 1,
        plotly=None if plotly is None else Markup(plotly),
        figures=Markup(json.dumps(figures).replace("<", "\\u003c")),
        findings=content.findings[-MAX_FINDINGS:],
        captions=[_caption(chart) for chart in times],
        is_part=[chart is not None and chart.view != (chart.steps[0], chart.steps[-1]) for chart in times],
        notes=[_row_notes(content, history) for history in content.evidence.history],
        operand=operand_text,
    )


def facts(content: ReportContent) -> list[tuple[str, str]]:
    """Return label and text of each fact about a run and its step: name, date, epoch, step, learning rate and so on."""
    evidence = content.evidence
    run, finding = evidence.run, summary.headline(evidence.findings)
    step = last_step(evidence) if finding is None else finding.step
    epoch = recorded(evidence, "epoch", step)
    rates = [recorded(replace(evidence, history=(one,)), "learning_rate", step) for one in evidence.history]
    batch = evidence.batch
    known = batch.batch_idx if batch is not None else None
    batch_idx = recorded(evidence, "batch_idx", step) if known is None else known
    scaler = "" if run.scaler == "none" else f", {run.scaler} gradient scaler"
    clipping = run.clip_policy or (f"{run.clip_val:g} by {run.clip_algorithm}" if run.clip_val else "none")
    later = f", after step {last_step(evidence)}" if last_step(evidence) > step else ""
    found = [
        ("Run", content.run_name),
        ("Date", f"{content.written[:16].replace('T', ' ')} UTC{later}"),
        ("Step", f"{step}" + (f", epoch {epoch:.0f}" if epoch is not None else "")),
        ("Batch", _batch_text(batch_idx, batch.size if batch else run.batch_size)),
        ("Learning rate", "; ".join(dict.fromkeys(f"{rate:.4g}" for rate in rates if rate is not None))),
        ("Optimizer", "; ".join(one.kind for one in run.optimizers)),
        ("Precision", f"{run.precision}{scaler}" if run.optimizers else ""),
        ("Processes", str(run.processes) if run.processes > 1 else ""),
        ("Clipping", clipping if run.optimizers else ""),
    ]
    return [(label, text) for label, text in found if text]


def last_step(evidence: Evidence) -> int:
    """Return the last known step of a run."""
    return max([evidence.now, *(int(history.step[-1]) for history in evidence.history if len(history.step))])


def recorded(evidence: Evidence, name: str, step: int) -> float | None:
    """Return the value of a quantity at a step, or the last one before it; None if there is none."""
    for history in evidence.history:
        values = history.values.get(name, np.zeros(0))
        usable = np.flatnonzero((history.step[: len(values)] <= step) & np.isfinite(values))
        if len(usable):
            return float(values[usable[-1]])
    return None


def optimizer_text(optimizer: OptimizerFacts) -> str:
    """Return an optimizer with the hyperparameters of its groups."""
    groups = [", ".join(f"{key} {_plain(value)}" for key, value in group.items()) for group in optimizer.groups]
    return f"{optimizer.kind} ({'; '.join(dict.fromkeys(groups))})" if groups else optimizer.kind


def operand_text(operand: Operand) -> str:
    """Return shape, type and range of an operand, without its elements."""
    shape = "\u00d7".join(map(str, operand.shape)) or "scalar"
    spans = f", {operand.least:.4g} to {operand.greatest:.4g}" if operand.least is not None else ""
    bad = [f"{count} {kind}" for count, kind in ((operand.nan_count, "NaN"), (operand.inf_count, "infinite")) if count]
    return f"{operand.dtype} {shape}{spans}" + "".join(f", {one}" for one in bad)


def number(value: float, nan: str = "NaN") -> str:
    """Return a number with four significant digits.

    Args:
        value: The number.
        nan: The text for NaN, which is the limit of a finding without one.
    """
    return nan if np.isnan(value) else f"{value:.4g}"


def _charts(
    content: ReportContent, times: Sequence[TimeChart | None], is_plain: bool
) -> dict[str, str | dict[str, Any]]:
    """Return the charts by name: figures of plotly, or SVG."""
    found: dict[str, str | dict[str, Any]] = {}
    for index, (history, chart) in enumerate(zip(content.evidence.history, times, strict=True)):
        if chart is None:
            continue
        found[f"time-{index}"] = svg_charts.time_svg(chart) if is_plain else plotly_time.time_figure(chart)
        shown = history.with_gradients()
        if shown.parameter_grad_norm.size:
            table = content_rows(shown, content)
            draw = svg_charts.heatmap_svg if is_plain else plotly_heatmap.heatmap_figure
            found[f"heatmap-{index}"] = draw(shown.step.tolist(), table, chart.marks, chart.view)
    spreads = [gradient_spread(step, histogram) for step, histogram in content.gradients]
    if any(len(spread.logs) for spread in spreads):
        found["spread"] = svg_charts.spread_svg(spreads) if is_plain else plotly_bars.spread_figure(spreads)
    gains = layer_gains(content)
    if len(gains) > 1:
        found["gain"] = svg_charts.gain_svg(gains) if is_plain else plotly_bars.gain_figure(gains)
    return found


def _caption(chart: TimeChart | None) -> str:
    """Return the meaning of the lines and symbols that a time chart has."""
    if chart is None:
        return ""
    kinds = {mark.kind for mark in chart.marks}
    legend = (
        ("dotted line: the first sign", "since" in kinds),
        ("solid line: the first critical finding", "critical" in kinds),
        ("\u00d7: NaN or infinite", any(len(panel.nonfinite) for panel in chart.panels)),
        ("\u25be: findings", "finding" in kinds),
        ("\u2605: responses", "response" in kinds),
        ("shaded: the usual range of the update ratio", any(panel.band for panel in chart.panels)),
    )
    return "; ".join(["Vertical axes are logarithmic", *(text for text, is_shown in legend if is_shown)]) + "."


def _row_notes(content: ReportContent, history: History) -> str:
    table = content_rows(history, content)
    order = "execution" if table.is_executed else "registration"
    binned = " Adjacent parameters share a row." if len(table.names) < len(history.parameters) else ""
    mark = "" if table.marked is None else f" Marked: {table.names[table.marked]}{_why_marked(table, content)}."
    return f"Rows are in the order of {order}, the first one on top.{binned}{mark}"


def _why_marked(table: Rows, content: ReportContent) -> str:
    """Return why a row is marked, if the diagnosis does not name it."""
    names = [table.names[table.marked or 0]]
    first = content.evidence.replay.first if content.evidence.replay else None
    if find_place(names, content.diagnosis.where if content.diagnosis else None) is not None:
        return ""
    is_replayed = first is not None and find_place(names, first.module) is not None
    return ", in whose module the operation ran" if is_replayed else ", where the first critical finding was"


def _batch_text(batch_idx: float | None, size: int | None) -> str:
    index = "" if batch_idx is None else f"index {batch_idx:.0f}"
    rows_text = "" if size is None else f"{size} row{'' if size == 1 else 's'}"
    return ", ".join(one for one in (index, rows_text) if one)


def _plain(value: Mapping[str, Any] | Sequence[Any] | Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
