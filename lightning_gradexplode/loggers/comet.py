"""Comet: scalars, histograms, findings and reports."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.histogram_bins import condensed
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Diagnosis, Finding, Histogram, Report


class CometAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is a Comet experiment, online or offline."""

    takes_histograms = True
    package = "comet_ml"

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Add the middles of the bins to Comet's own histograms; one without a finite value is left out."""
        from comet_ml import data_structure

        comet: Any = data_structure  # untyped
        for name, one in condensed(histograms).items():
            shown = comet.Histogram()
            shown.add(((one.edges[:-1] + one.edges[1:]) / 2).tolist(), one.counts.tolist())
            self.experiment.log_histogram_3d(shown, name=name, step=step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Write the finding as a text, and the latest one among the experiment's other values."""
        text = f"{finding}\n{advice}"
        self.experiment.log_text(text, step=finding.step)
        self.experiment.log_other(f"{PREFIX}/finding", text)

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Write the diagnosis as a text, and among the experiment's other values."""
        self.experiment.log_text(diagnosis.markdown(), step=step)
        self.experiment.log_other(f"{PREFIX}/diagnosis", diagnosis.markdown())

    def report(self, report: Report) -> None:
        """Log the report's files as assets, its page as HTML, and its picture as an image."""
        experiment = self.experiment
        for path in sorted(one for one in report.folder.iterdir() if one.is_file()):
            experiment.log_asset(str(path), file_name=f"{PREFIX}/{path.name}", step=report.step)
        if report.page is not None:
            experiment.log_html(report.page.read_text(encoding="utf-8"))
        if report.picture:
            experiment.log_image(io.BytesIO(report.picture), name=f"{PREFIX}/gradient_norms", step=report.step)
