"""Weights & Biases: metrics with the right x-axis, histograms, alerts, the finding in the summary, and the report."""

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
from lightning_gradexplode.records import Finding, FloatArray, Histogram, Report, Severity

STEP = "trainer/global_step"
"""The x-axis that Lightning's logger gives to all metrics."""

AT_MOST = 512
"""Bins that W&B takes of a histogram."""

WAIT = timedelta(minutes=15)
"""No second alert of the same title within this time, whatever the run does."""


_SUMMARIES = {f"{PREFIX}/severity": "max", f"{PREFIX}/nonfinite_count": "max"}
"""What the run's summary keeps of a metric, where it isn't the last value."""


_PARTS = ("._type", ".bins", ".values")
"""What W&B makes of a histogram; each is a metric to its summary."""


class WandbAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is a W&B run, online or offline.

    In the run's summary are ``gradexplode/finding``, the first finding of the worst severity so far, and
    ``gradexplode/findings``, their number; a resumed run goes on from what is there. The largest ``severity`` and
    ``nonfinite_count`` are kept there too.
    """

    takes_histograms = True

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._defined: set[str] = set()

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Tell whether the experiment is a W&B run."""
        return type(experiment).__module__.partition(".")[0] == "wandb"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars, with the trainer's step as x-axis."""
        self._define(values)
        super().scalars(values, step)

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms of some 40 bins; one of no finite value is left out."""
        import wandb

        shown = {
            name: wandb.Histogram(np_histogram=(one.counts, _rounded(one.edges)))
            for name, one in condensed(histograms).items()
            if len(one.counts) <= AT_MOST
        }
        if shown:
            # A summary of histograms would be written, and sent, as often as they are, and nobody reads it.
            self._define([f"{name}{part}" for name in shown for part in ("", *_PARTS)], "none")
            self.logger.log_metrics(shown, step=step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Put the finding into the summary."""
        summary = self.logger.experiment.summary
        known = summary.get(f"{PREFIX}/finding")
        if known is None or Severity[known["severity"]] < finding.severity:
            summary[f"{PREFIX}/finding"] = {**finding.as_dict(), "advice": advice}
        summary[f"{PREFIX}/findings"] = int(summary.get(f"{PREFIX}/findings") or 0) + 1

    def alert(self, finding: Finding, advice: str = "") -> None:
        """Send an alert, at level ERROR if the finding is critical, at WARN otherwise."""
        self.logger.experiment.alert(
            title=f"{PREFIX} {finding.severity.name}: {finding.sign}"[:63],
            text=f"{finding}\n{advice}",
            level="ERROR" if finding.severity is Severity.CRITICAL else "WARN",
            wait_duration=WAIT,
        )

    def report(self, report: Report) -> None:
        """Log the report's folder as an artifact, its page as a panel, and its picture as an image."""
        import wandb

        run = self.logger.experiment
        artifact = wandb.Artifact(f"{PREFIX}-{run.id}", type="report", metadata={"step": report.step})
        artifact.add_dir(str(report.folder))
        run.log_artifact(artifact)
        if report.page is not None:
            self._define([f"{PREFIX}/report"])
            page = wandb.Html(report.page.read_text(encoding="utf-8"), inject=False)
            self.logger.log_metrics({f"{PREFIX}/report": page}, step=report.step)
        if report.picture:
            self._define([f"{PREFIX}/gradient_norms"])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "gradient_norms.png"
                path.write_bytes(report.picture)
                self.logger.log_metrics({f"{PREFIX}/gradient_norms": wandb.Image(str(path))}, step=report.step)

    def _define(self, names: Iterable[str], summary: str | None = None) -> None:
        """Give metrics that are new the trainer's step as x-axis, and say what the summary keeps of them.

        Each by its full name: where several patterns fit, as Lightning's own ``*`` does, W&B takes any of them.
        """
        run = self.logger.experiment
        for name in sorted(set(names) - self._defined):
            kept = summary or _SUMMARIES.get(name)
            run.define_metric(_escaped(self._logged(name)), step_metric=STEP, step_sync=True, summary=kept)
            self._defined.add(name)

    def _logged(self, name: str) -> str:
        """Give a name as the logger writes it, which may have been told to put something before all names."""
        prefix = getattr(self.logger, "_prefix", "")
        return f"{prefix}{self.logger.LOGGER_JOIN_CHAR}{name}" if prefix else name


def _escaped(name: str) -> str:
    """Keep the dots of parameter names from being taken for levels of a nested value."""
    base, part = next(((name.removesuffix(part), part) for part in _PARTS if name.endswith(part)), (name, ""))
    return base.replace(".", "\\.") + part


def _rounded(edges: FloatArray) -> FloatArray:
    """Leave five digits of each border: neighbours are a quarter of an octave apart, and a day's run has millions."""
    return np.array([float(f"{edge:.5g}") for edge in edges.tolist()])
