"""The charts of a report as data, which the modules ``plotly_*`` and `svg_charts` draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lightning_gradexplode.records import (
    FloatArray,
    Histogram,
    History,
    IntArray,
    ReportContent,
    Severity,
)
from lightning_gradexplode.records.step_record import USUAL_UPDATE_RATIO
from lightning_gradexplode.records.summary import actions, began
from lightning_gradexplode.report.axes import Axis, axis_for

CONTEXT = 100
"""Smallest number of steps before the first sign that a time chart shows at first, so that a slow rise is visible."""

AFTER = 10
"""Number of steps in the view after the last one with a finite loss or gradient norm."""

MAX_GAINS = 60
"""Largest number of modules whose gains are drawn."""

MAX_LOSSES = 3
"""Largest number of logged losses that are drawn if the loss itself is unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One curve.

    Args:
        name: Its name in the legend.
        values: Its values at the chart's steps, shape ``(steps,)``; NaN if unknown.
        color: Index of its color, from 1.
        is_dashed: Whether it is drawn dashed.
    """

    name: str
    values: FloatArray
    color: int = 1
    is_dashed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Curves with a common vertical axis.

    Args:
        title: The quantity on the axis.
        axis: The axis.
        lines: The curves.
        nonfinite: Steps at which the first curve is NaN or infinite.
        band: The usual range of values, None if there is none.
    """

    title: str
    axis: Axis
    lines: tuple[Line, ...]
    nonfinite: IntArray
    band: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """An event at a step.

    Args:
        step: The step.
        kind: ``"since"`` (the first sign), ``"critical"`` (the first critical finding), ``"finding"`` or
            ``"response"``.
        text: A description in one line.
    """

    step: int
    kind: str
    text: str

    @property
    def is_line(self) -> bool:
        """Whether it is drawn as a vertical line, and not as a symbol."""
        return self.kind in ("since", "critical")


@dataclass(frozen=True, slots=True, eq=False)
class TimeChart:
    """Panels with one time axis.

    Args:
        steps: The steps, ascending.
        panels: The panels, from top to bottom.
        marks: Events.
        view: First and last step of the part that is shown at first.
    """

    steps: IntArray
    panels: tuple[Panel, ...]
    marks: tuple[Mark, ...]
    view: tuple[int, int]


def time_chart(history: History, content: ReportContent) -> TimeChart | None:
    """Return the time chart of one optimizer; None if nothing was recorded.

    Args:
        history: Its last steps.
        content: The content of the report.
    """
    if not len(history.step):
        return None
    found = tuple(_panels(history, {finding.sign for finding in content.findings}))
    return TimeChart(history.step, found, tuple(_marks(content, history.step)), _view(history, content))


_NONE = np.array([math.nan])


def _panels(history: History, signs: Container[str]) -> Iterator[Panel]:
    values = history.values

    def panel(title: str, names: Mapping[str, str], band: tuple[float, float] | None = None) -> Iterator[Panel]:
        lines = tuple(
            Line(names[name], values[name], color, is_dashed=name == "clip_val")
            for color, name in enumerate((one for one in names if not np.isnan(values.get(one, _NONE)).all()), 1)
        )
        nonfinite = history.step[nonfinite_steps(history, next(iter(names)), signs)]
        if lines or len(nonfinite):
            yield Panel(title, axis_for(*(line.values for line in lines)), lines, nonfinite, band)

    yield from panel("Loss", _losses(history))
    norms = {"grad_norm": "before clipping", "grad_norm_clipped": "after clipping", "clip_val": "clip value"}
    if "clip_val" not in values or np.isnan(values["clip_val"]).all():
        norms = {"grad_norm": "gradient norm"}
    yield from panel("Gradient norm", norms)
    yield from panel("Update ratio", {"update_ratio": "update / weights"}, USUAL_UPDATE_RATIO)
    yield from panel("Learning rate", {"learning_rate": "learning rate"})
    yield from panel("Loss scale", {"loss_scale": "scale of the gradient scaler"})


def nonfinite_steps(history: History, name: str, signs: Container[str]) -> npt.NDArray[np.bool_]:
    """Return at which steps a quantity was NaN or infinite, shape ``(steps,)``.

    NaN in a history may also mean that a value was not measured. Norms always are; the loss of manual optimization is
    not.

    Args:
        history: The steps.
        name: The quantity.
        signs: The signs that were found in the run.
    """
    unknown = np.full(len(history.step), math.nan)
    values, alarmed = history.values.get(name, unknown), history.values.get("severity", unknown) > 0
    is_measured = history.has_gradients if name == "grad_norm" else name == "loss" and "nonfinite-loss" in signs
    found: npt.NDArray[np.bool_] = np.isinf(values) | (np.isnan(values) & alarmed & is_measured)
    return found


def _losses(history: History) -> dict[str, str]:
    """Return names and labels of the loss, or of logged losses if it is unknown, as in manual optimization."""
    if not np.isnan(history.values.get("loss", np.array([math.nan]))).all():
        return {"loss": "loss"}
    logged = [name for name in history.values if name.startswith("logged/") and "loss" in name.lower()]
    return {"loss": "loss"} | {name: name.removeprefix("logged/") for name in logged[:MAX_LOSSES]}


def _marks(content: ReportContent, steps: IntArray) -> Iterator[Mark]:
    recorded = set(steps.tolist())
    diagnosis = content.diagnosis
    critical = next((one for one in content.evidence.findings if one.severity is Severity.CRITICAL), None)
    is_before = diagnosis is not None and (critical is None or critical.step != began(diagnosis))
    if diagnosis is not None and is_before and began(diagnosis) in recorded:
        yield Mark(began(diagnosis), "since", f"first sign at step {began(diagnosis)}")
    if critical is not None and critical.step in recorded:
        yield Mark(critical.step, "critical", f"first critical finding at step {critical.step}")
    for finding in content.findings:
        if finding.step in recorded and finding.severity >= Severity.WARNING:
            yield Mark(finding.step, "finding", str(finding))
    for attempt in content.evidence.attempts:
        yield Mark(attempt.step, "response", actions([attempt])[0])


def _view(history: History, content: ReportContent) -> tuple[int, int]:
    """Return first and last step of the part around the incident, without most of the steps after all was lost."""
    first, last = int(history.step[0]), int(history.step[-1])
    if content.diagnosis is None:
        return first, last
    since = began(content.diagnosis)
    values = np.array([history.values[name] for name in ("loss", "grad_norm") if name in history.values])
    known = history.step[np.isfinite(values).any(0)] if len(values) else history.step
    if len(known):
        last = min(last, max(int(known[-1]), since) + AFTER)
    context = max(CONTEXT, 2 * (last - since))
    return max(first, since - context), last


@dataclass(frozen=True, slots=True, eq=False)
class GradientSpread:
    """Distribution of the absolute values of one parameter's gradient elements at one step.

    Args:
        step: The step.
        logs: Decimal logarithms of the middles of the bins, shape ``(bins,)``.
        shares: Share of all elements in each bin, shape ``(bins,)``; zeros and non-finite ones are in none.
    """

    step: int
    logs: FloatArray
    shares: FloatArray


def gradient_spread(step: int, histogram: Histogram) -> GradientSpread:
    """Return the distribution of the absolute values of a histogram's elements, in bins of a quarter of an octave.

    An empty bin is added at each end, so that a single bin can be drawn as a line.
    """
    total = max(histogram.finite + histogram.nonfinite, 1)
    counts, edges = histogram.magnitudes()
    if len(counts):
        counts = np.pad(counts, 1)
        edges = np.concatenate([[2 * edges[0] - edges[1]], edges, [2 * edges[-1] - edges[-2]]])
    return GradientSpread(step, (edges[:-1] + edges[1:]) / 2, counts / total)


def layer_gains(content: ReportContent) -> list[tuple[str, float]]:
    """Return the factor by which the norm of the error gradient changes in the backward pass through each module.

    The modules are in execution order. If there are more than `MAX_GAINS`, each group of adjacent modules is
    represented by the one whose gain is furthest from 1.
    """
    gradients = content.module_gradients
    if gradients is not None:
        gains = _known(zip(gradients.modules, gradients.gain.tolist(), strict=True))
    else:
        replay = content.evidence.replay
        norms = [(one.module, one.gradient_norm) for one in (replay.activations if replay else ()) if one.gradient_norm]
        gains = _known((name, norm / after) for (_, norm), (name, after) in itertools.pairwise(norms))
    size = -(-len(gains) // MAX_GAINS) or 1
    return [max(gains[at : at + size], key=lambda one: abs(np.log(one[1]))) for at in range(0, len(gains), size)]


def _known(gains: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(name, gain) for name, gain in gains if np.isfinite(gain) and gain > 0]


def is_sparse(positions: FloatArray) -> bool:
    """Return whether a line between neighboring values would show little: most are unknown, or there is only one."""
    known = np.isfinite(positions)
    return bool(known.sum() < 0.7 * len(known) or len(known) == 1)
