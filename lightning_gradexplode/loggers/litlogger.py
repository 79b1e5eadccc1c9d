"""LitLogger, of the Lightning platform: findings as metadata, and the report's files; it has no histograms."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Diagnosis, Finding, Report


class LitLoggerAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is one of ``litlogger``, or to such an experiment itself.

    A key of an experiment has one kind of value: metrics are under ``gradexplode/``, metadata under
    ``gradexplode.critical`` and so on, files under ``gradexplode/report/``.
    """

    package = "litlogger"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log the finite scalars at a step; LitLogger drops the others with a warning each."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if self.logger is not self.experiment:
            super().scalars(finite, step)
            return
        for name, value in finite.items():
            self.experiment[name].append(value, step=step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Set metadata: the latest finding of each severity."""
        self.experiment[f"{PREFIX}.{finding.severity.name.lower()}"] = f"{finding}\n{advice}"

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Set metadata: the diagnosis of the latest incident."""
        self.experiment[f"{PREFIX}.diagnosis"] = diagnosis.markdown()

    def report(self, report: Report) -> None:
        """Log the report's files, and its picture as an image."""
        from litlogger import File, Image

        for path in sorted(one for one in report.folder.iterdir() if one.is_file()):
            self.experiment[f"{PREFIX}/report/{path.name}"] = File(str(path))
        if report.picture:
            from PIL import Image as Picture

            self.experiment[f"{PREFIX}/report/gradient_norms"] = Image(Picture.open(io.BytesIO(report.picture)))
