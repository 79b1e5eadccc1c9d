"""Weights & Biases: scalars, histograms, alerts, the finding and the diagnosis in the summary, and the report."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.histogram_bins import condensed
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Diagnosis, Finding, FloatArray, Histogram, Report, Severity
from lightning_gradexplode.records.summary import cause_title

STEP = "trainer/global_step"
"""The x-axis of all metrics of Lightning's logger."""

MAX_BINS = 512
"""Largest number of bins that W&B accepts."""

ALERT_INTERVAL = timedelta(minutes=15)
"""Time within which no second alert with the same title is sent."""


_SUMMARIES = {f"{PREFIX}/severity": "max", f"{PREFIX}/nonfinite_count": "max"}
"""Aggregations in the run's summary other than the last value."""

_HISTOGRAMS = tuple(f"{PREFIX}/{quantity}/" for quantity in ("gradient", "update", "weight"))


class WandbAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is a W&B run, online or offline.

    The run's summary has ``gradexplode/finding`` (the first finding of the worst severity so far),
    ``gradexplode/findings`` (their number), ``gradexplode/diagnosis`` (of the latest incident), and the largest
    ``gradexplode/severity`` and ``gradexplode/nonfinite_count``; a resumed run continues from these.
    """

    takes_histograms = True
    package = "wandb"

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._defined: set[str] = set()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars, with the trainer's step as x-axis."""
        self._log(values, step)

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Log histograms with about 40 bins; one without a finite value is left out."""
        import wandb

        shown = {
            name: wandb.Histogram(np_histogram=(one.counts, _rounded(one.edges)))
            for name, one in condensed(histograms).items()
            if len(one.counts) <= MAX_BINS
        }
        if shown:
            self._log(shown, step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Write the finding into the summary."""
        summary = self.experiment.summary
        known = summary.get(f"{PREFIX}/finding")
        if known is None or Severity[known["severity"]] < finding.severity:
            summary[f"{PREFIX}/finding"] = {**finding.as_dict(), "advice": advice}
        summary[f"{PREFIX}/findings"] = int(summary.get(f"{PREFIX}/findings") or 0) + 1

    def alert(self, finding: Finding, advice: str = "") -> None:
        """Send an alert, at level ERROR if the finding is critical, at WARN otherwise."""
        self.experiment.alert(
            title=f"{PREFIX} {finding.severity.name}: {finding.sign}"[:63],
            text=f"{finding}\n{advice}",
            level="ERROR" if finding.severity is Severity.CRITICAL else "WARN",
            wait_duration=ALERT_INTERVAL,
        )

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Write the diagnosis of the latest incident into the summary."""
        self.experiment.summary[f"{PREFIX}/diagnosis"] = {
            "step": diagnosis.step,
            "what": diagnosis.what,
            "where": diagnosis.where,
            "since": diagnosis.since,
            "causes": [cause_title(cause) for cause in diagnosis.causes],
            "remedies": list(diagnosis.remedies),
        }

    def report(self, report: Report) -> None:
        """Log the report's folder as an artifact, its page as a panel, and its picture as an image."""
        import wandb

        run = self.experiment
        artifact = wandb.Artifact(f"{PREFIX}-{run.id}", type="report", metadata={"step": report.step})
        for path in sorted(one for one in report.folder.iterdir() if one.is_file()):
            artifact.add_file(str(path))
        run.log_artifact(artifact)
        if report.page is not None:
            page = wandb.Html(report.page.read_text(encoding="utf-8"), inject=False)
            self._log({f"{PREFIX}/report": page}, report.step)
        if report.picture:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "gradient_norms.png"
                path.write_bytes(report.picture)
                self._log({f"{PREFIX}/gradient_norms": wandb.Image(str(path))}, report.step)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        self._define(values)
        nested = _nested(values)
        if hasattr(self.logger, "log_metrics"):
            self.logger.log_metrics(metrics=nested, step=step)
        else:
            self.experiment.log({**nested, STEP: step})

    def _define(self, names: Iterable[str]) -> None:
        """Define the x-axis of new metrics, and their aggregation in the summary.

        The parameters of one quantity share a definition. No two definitions match the same metric, since W&B uses
        any of those that match.
        """
        for name in names:
            parts = name.split("/", 2)
            pattern = f"{parts[0]}/{parts[1]}/*" if len(parts) > 2 else name
            if pattern not in self._defined:
                self._defined.add(pattern)
                summary = "none" if pattern.startswith(_HISTOGRAMS) else _SUMMARIES.get(name)
                self.experiment.define_metric(self._logged(pattern), step_metric=STEP, step_sync=True, summary=summary)

    def _logged(self, name: str) -> str:
        """Return a name as the logger writes it, with the logger's ``prefix``."""
        prefix = getattr(self.logger, "_prefix", "")
        return f"{prefix}{self.logger.LOGGER_JOIN_CHAR}{name}" if prefix else name


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values whose names contain dots as nested dictionaries, which W&B shows under the same names.

    A definition with a wildcard does not match a metric whose name contains a dot.
    """
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *outer, last = name.split(".")
        level = nested
        for part in outer:
            level = level.setdefault(part, {})
        level[last] = value
    return nested


def _rounded(edges: FloatArray) -> FloatArray:
    """Return borders with five digits, to save space: adjacent ones differ by a quarter of an octave."""
    return np.array([float(f"{edge:.5g}") for edge in edges.tolist()])
