"""TensorBoard: histograms from counts that are already there, charts, findings as text, reports as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.histogram_bins import Condensed, condensed
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.loggers.tensorboard_layout import BAND, with_our_charts
from lightning_gradexplode.records import Finding, Histogram, Report


class TensorBoardAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is a ``SummaryWriter``, torch's own or one that is used like it."""

    takes_histograms = True

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Tell whether the experiment is a writer of TensorBoard events."""
        return hasattr(experiment, "add_histogram_raw")

    def started(self) -> None:
        """Add a category of charts to the page of custom scalars, behind those that are there."""
        if self._is_torchs:
            self.logger.experiment.flush()
            layout = with_our_charts(Path(self.logger.experiment.log_dir))
            if layout is not None:
                self.logger.experiment._get_file_writer().add_summary(layout)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars, along with the update ratio also the borders of its healthy band."""
        super().scalars({**values, **BAND} if f"{PREFIX}/update_ratio" in values else values, step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Write a finding as text, one tag a sign."""
        where = f" in `{finding.where}`" if finding.where else ""
        lines = [
            f"### {finding.severity.name}: {finding.sign}{where}",
            "",
            finding.message,
            "",
            "| step | value | limit |",
            "| ---: | ---: | ---: |",
            f"| {finding.step} | {finding.value:.4g} | {finding.limit:.4g} |",
            "",
            f"**What to do:** {advice}" if advice else "",
        ]
        self.logger.experiment.add_text(f"{PREFIX}/finding/{finding.sign}", "\n".join(lines), finding.step)

    def report(self, report: Report) -> None:
        """Write a report's diagnosis as text and its heat map as an image."""
        text = f"{report.diagnosis}\n\nThe whole report: `{report.page or report.folder}`"
        self.logger.experiment.add_text(f"{PREFIX}/report", text, report.step)
        if report.picture:
            pixels = np.asarray(Image.open(io.BytesIO(report.picture)))
            self.logger.experiment.add_image(f"{PREFIX}/gradient_norms", pixels, report.step, dataformats="HWC")
        self.logger.experiment.flush()  # the run may not live long

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms; one of no finite value at all is left out, for TensorBoard cannot show it."""
        shown = condensed(histograms)
        experiment = self.logger.experiment
        if not shown:
            return
        if self._is_torchs:
            experiment._get_file_writer().add_summary(_summary(shown), step)
            return
        for name, one in shown.items():
            low, *limits = one.edges.tolist()
            experiment.add_histogram_raw(
                tag=name,
                min=low,
                max=limits[-1],
                num=one.num,
                sum=one.sum,
                sum_squares=one.sum_squares,
                bucket_limits=limits,
                bucket_counts=one.counts.tolist(),
                global_step=step,
            )

    @property
    def _is_torchs(self) -> bool:
        kinds = type(self.logger.experiment).__mro__
        return any(kind.__module__.startswith("torch.utils.tensorboard") for kind in kinds)


def _summary(shown: Mapping[str, Condensed]) -> Any:
    """Put histograms into one summary: with one for each, the writer's short queue would make the training wait."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    values = []
    for name, one in shown.items():
        # The server takes `min` as the first bucket's left border, and the limits are right borders.
        low, *limits = one.edges.tolist()
        histogram = HistogramProto(
            min=low,
            max=limits[-1],
            num=one.num,
            sum=one.sum,
            sum_squares=one.sum_squares,
            bucket_limit=limits,
            bucket=one.counts.tolist(),
        )
        values.append(Summary.Value(tag=name, histo=histogram))
    return Summary(value=values)
