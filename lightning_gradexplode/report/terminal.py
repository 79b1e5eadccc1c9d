"""A report in the terminal: what happened, causes, curves; and the comparison of two runs."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Container, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import FloatArray, History, ReportContent, Severity, summary
from lightning_gradexplode.records.text import plain_text, without_markup
from lightning_gradexplode.report.axes import axis_for, tick_label
from lightning_gradexplode.report.charts import nonfinite_steps
from lightning_gradexplode.report.page import facts

BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
NONFINITE = "\u00d7"

_CURVES = ("loss", "grad_norm", "update_ratio", "learning_rate", "loss_scale")


def sparkline(values: npt.NDArray[Any], width: int = 60) -> str:
    """Return a curve in one line of text, on a logarithmic axis. A cross is a non-finite value, a space an unknown one.

    Args:
        values: The values, shape ``(steps,)``; infinite if they were not finite, NaN if unknown.
        width: Largest number of characters. With more values, each character shows the largest of several.
    """
    if not len(values):
        return ""
    axis = axis_for(values)
    positions = axis.positions(values)
    bounds = np.linspace(0, len(values), min(width, len(values)) + 1).astype(int)
    parts = []
    for first, last in itertools.pairwise(bounds.tolist()):
        part, raw = positions[first:last], values[first:last]
        known = part[np.isfinite(part)]
        if np.isinf(raw).any():
            parts.append(NONFINITE)
        elif len(known):
            level = (float(known.max()) - axis.low) / (axis.high - axis.low)
            parts.append(BARS[min(int(level * len(BARS)), len(BARS) - 1)])
        else:
            parts.append(" ")
    return "".join(parts)


def report_lines(content: ReportContent, width: int = 80) -> Iterator[str]:
    """Return a report for the terminal, line by line.

    Args:
        content: The report.
        width: Columns of the terminal.
    """
    diagnosis, findings = content.diagnosis, content.evidence.findings
    yield plain_text(f"{content.run_name}: {summary.title(diagnosis, findings) if diagnosis else 'no incident'}")
    if diagnosis is not None:
        yield from _paragraph("What", diagnosis.what, width)
        for cause in diagnosis.causes:
            yield from _paragraph("Why", f"{summary.cause_title(cause)}. {' '.join(cause.evidence)}", width)
        for remedy in summary.remedies(diagnosis):
            yield from _paragraph("Do", remedy, width)
        yield from _paragraph("Where", summary.place(diagnosis), width)
        yield from _paragraph("Since", summary.since(diagnosis, findings), width)
        if content.evidence.attempts or content.evidence.run.optimizers:
            yield from _paragraph(
                "Done", summary.done(content.evidence.attempts, content.evidence.run.on_explosion), width
            )
    for label, text in facts(content)[1:]:
        yield from _paragraph(label, text, width)
    signs = {finding.sign for finding in content.findings}
    for index, history in enumerate(content.evidence.history):
        if len(history.step):
            name = f" of optimizer {index}" if len(content.evidence.history) > 1 else ""
            yield f"  Steps {history.step[0]} to {history.step[-1]}{name}"
        for quantity in _CURVES:
            values = _curve(history, quantity, signs)
            if np.isfinite(values).any():
                span = _span(values)
                yield f"    {quantity:14} {sparkline(values, max(width - 20 - len(span), 12))} {span}"


def comparison(first: ReportContent, second: ReportContent) -> list[tuple[str, str, str]]:
    """Return a table of two runs: label, text of the first run, text of the second run."""
    one, other = _outline(first), _outline(second)
    return [(name, one.get(name, ""), other.get(name, "")) for name in dict.fromkeys((*one, *other))]


def comparison_lines(table: Sequence[tuple[str, str, str]], width: int = 80) -> Iterator[str]:
    """Return a comparison line by line. Differences are marked by an asterisk."""
    column = max((width - 24) // 2 - 2, 16)
    for name, one, other in table:
        pairs = [textwrap.wrap(without_markup(text), column) or [""] for text in (one, other)]
        for row in range(max(map(len, pairs))):
            left, right = (pair[row] if row < len(pair) else "" for pair in pairs)
            label = f"{'*' if one != other else ' '} {name}" if row == 0 else ""
            yield f"{label:22} {left:{column}}  {right}".rstrip()


def _outline(content: ReportContent) -> dict[str, str]:
    diagnosis, critical = content.diagnosis, [one for one in content.findings if one.severity is Severity.CRITICAL]
    outline = dict(facts(content))
    outline["Verdict"] = summary.verdict(diagnosis, content.findings)
    outline["First critical step"] = str(critical[0].step) if critical else "none"
    outline["First cause"] = summary.cause_title(diagnosis.causes[0]) if diagnosis and diagnosis.causes else "none"
    outline["Where"] = summary.place(diagnosis) if diagnosis else ""
    outline["Findings"] = str(len(content.findings))
    for history in content.evidence.history[:1]:
        for quantity in ("loss", "grad_norm", "update_ratio"):
            values = _curve(history, quantity, {finding.sign for finding in content.findings})
            if np.isfinite(values).any():
                outline[quantity] = _span(values)
                outline[f"{quantity} curve"] = sparkline(values, 24)
    return {name: text for name, text in outline.items() if text}


def _curve(history: History, name: str, signs: Container[str]) -> FloatArray:
    """Return the values of a quantity, infinite where it was NaN or infinite; empty if it was never measured."""
    if name not in history.values:
        return np.zeros(0)
    return np.where(nonfinite_steps(history, name, signs), np.inf, history.values[name])


def _span(values: npt.NDArray[Any]) -> str:
    """Return the median and the largest finite value."""
    finite = values[np.isfinite(values)]
    middle, largest = (tick_label(float(f"{one:.3g}")) for one in (np.median(finite), finite.max()))
    return f"median {middle}, max {largest}"


def _paragraph(heading: str, text: str, width: int) -> list[str]:
    indent = 17
    wrapped = textwrap.wrap(
        without_markup(text), max(width - indent, 20), break_long_words=False, break_on_hyphens=False
    )
    return [f"  {heading + ':' if row == 0 else '':{indent - 3}} {line}" for row, line in enumerate(wrapped)]
