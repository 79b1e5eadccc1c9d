"""Trackio: scalars, histograms, alerts, findings and diagnosis as text, and the report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.histogram_bins import condensed
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Diagnosis, Finding, Histogram, Report, Severity


class TrackioAdapter(LoggerAdapter):
    """Writes to a run of trackio, as ``trackio.init`` returns it, or to a logger whose experiment is one."""

    takes_histograms = True
    package = "trackio"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars at a step."""
        self._log(values, step)

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Log histograms with about 40 bins; one without a finite value is left out."""
        import trackio

        shown = condensed(histograms).items()
        self._log({name: trackio.Histogram(np_histogram=(one.counts, one.edges)) for name, one in shown}, step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Log the finding as text."""
        import trackio

        self._log({f"{PREFIX}/finding": trackio.Markdown(f"{finding}\n\n{advice}")}, finding.step)

    def alert(self, finding: Finding, advice: str = "") -> None:
        """Send an alert, at level ERROR if the finding is critical, at WARN otherwise."""
        import trackio

        is_critical = finding.severity is Severity.CRITICAL
        self.experiment.alert(
            title=f"{PREFIX} {finding.severity.name}: {finding.sign}",
            text=f"{finding}\n{advice}",
            level=trackio.AlertLevel.ERROR if is_critical else trackio.AlertLevel.WARN,
            step=finding.step,
        )

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Log the diagnosis as text."""
        import trackio

        self._log({f"{PREFIX}/diagnosis": trackio.Markdown(diagnosis.markdown())}, step)

    def report(self, report: Report) -> None:
        """Log the report's folder as an artifact, its page as HTML, and its picture as an image."""
        import trackio
        from PIL import Image

        run = self.experiment
        run.log_artifact(report.folder, name=f"{PREFIX}-{run.name}", type="report")
        shown: dict[str, Any] = {}
        if report.page is not None:
            shown[f"{PREFIX}/report"] = trackio.Html(report.page.read_text(encoding="utf-8"), inject=False)
        if report.picture:
            shown[f"{PREFIX}/gradient_norms"] = trackio.Image(Image.open(io.BytesIO(report.picture)))
        self._log(shown, report.step)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if hasattr(self.logger, "log_metrics"):
            self.logger.log_metrics(metrics=dict(values), step=step)
        elif values:
            self.experiment.log(dict(values), step=step)
