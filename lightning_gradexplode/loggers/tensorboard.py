"""TensorBoard: scalars, histograms, charts, findings and diagnosis as text, reports as images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.histogram_bins import Condensed, condensed, log_condensed
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.loggers.tensorboard_layout import LOG_GRAD_NORM, USUAL_UPDATE_RATIO, layout_with_charts
from lightning_gradexplode.records import Diagnosis, Finding, Histogram, Report
from lightning_gradexplode.records.text import plain_text

_GRADIENT = f"{PREFIX}/gradient/"


class TensorBoardAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is a ``SummaryWriter``, torch's own or one with the same methods."""

    takes_histograms = True

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Return whether the experiment is a writer of TensorBoard events."""
        return hasattr(experiment, "add_histogram_raw")

    def started(self) -> None:
        """Add a category of charts to the page of custom scalars, after the existing ones."""
        if self._is_torch_writer:
            self.experiment.flush()
            layout = layout_with_charts(Path(self.experiment.log_dir))
            if layout is not None:
                self.experiment._get_file_writer().add_summary(layout)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars, the usual range of the update ratio, and the decimal logarithm of the gradient norm.

        TensorBoard's axes are linear, so that no other step can be read after an explosion.
        """
        logged = {**values, **USUAL_UPDATE_RATIO} if f"{PREFIX}/update_ratio" in values else dict(values)
        norm = values.get(f"{PREFIX}/grad_norm", 0.0)
        if 0.0 < norm < math.inf:
            logged[LOG_GRAD_NORM] = math.log10(norm)
        if hasattr(self.logger, "log_metrics"):
            super().scalars(logged, step)
        else:
            for name, value in logged.items():
                self.experiment.add_scalar(name, value, step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Write a finding as text, one tag for each sign."""
        where = f" in `{plain_text(finding.where)}`" if finding.where else ""
        lines = [
            f"### {finding.severity.name}: {plain_text(finding.sign)}{where}",
            "",
            plain_text(finding.message),
            "",
            "| step | value | limit |",
            "| ---: | ---: | ---: |",
            f"| {finding.step} | {finding.value:.4g} | {finding.limit:.4g} |",
            "",
            f"**What to do:** {advice}" if advice else "",
        ]
        self.experiment.add_text(f"{PREFIX}/finding/{plain_text(finding.sign)}", "\n".join(lines), finding.step)

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Write the diagnosis as text."""
        self.experiment.add_text(f"{PREFIX}/diagnosis", diagnosis.markdown(), step)

    def report(self, report: Report) -> None:
        """Write a report's heat map as an image, and the name of its page as text."""
        name = f"{report.folder.name}/{report.page.name}" if report.page else report.folder.name
        self.experiment.add_text(f"{PREFIX}/report", f"Beside the event files: `{name}`", report.step)
        if report.picture:
            from PIL import Image

            pixels = np.asarray(Image.open(io.BytesIO(report.picture)))
            self.experiment.add_image(f"{PREFIX}/gradient_norms", pixels, report.step, dataformats="HWC")
        self.experiment.flush()  # the run may end soon

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms; for gradients also those of the decimal logarithm of the absolute values.

        A histogram without a finite value is left out, since TensorBoard cannot show it.
        """
        shown = condensed(histograms)
        for name, histogram in histograms.items():
            if name.startswith(_GRADIENT) and (logarithmic := log_condensed(histogram)) is not None:
                shown[f"{PREFIX}/log10_gradient/{name.removeprefix(_GRADIENT)}"] = logarithmic
        if not shown:
            return
        if self._is_torch_writer:
            self.experiment._get_file_writer().add_summary(_summary(shown), step)
            return
        for name, one in shown.items():
            limits, counts = one.edges[1:].tolist(), one.counts.tolist()
            self.experiment.add_histogram_raw(
                tag=name, bucket_limits=limits, bucket_counts=counts, global_step=step, **_statistics(one)
            )

    @property
    def _is_torch_writer(self) -> bool:
        kinds = type(self.experiment).__mro__
        return any(kind.__module__.startswith("torch.utils.tensorboard") for kind in kinds)


def _summary(shown: Mapping[str, Condensed]) -> Any:
    """Return one summary of all histograms: one for each would fill the writer's short queue and block training."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    values = []
    for name, one in shown.items():
        limits, counts = one.edges[1:].tolist(), one.counts.tolist()
        histogram = HistogramProto(bucket_limit=limits, bucket=counts, **_statistics(one))
        values.append(Summary.Value(tag=name, histo=histogram))
    return Summary(value=values)


def _statistics(one: Condensed) -> dict[str, float]:
    """Return a histogram's numbers but for its buckets, whose limits are right borders.

    The server uses ``min`` as the left border of the first bucket.
    """
    low, high = float(one.edges[0]), float(one.edges[-1])
    return {"min": low, "max": high, "num": one.num, "sum": one.sum, "sum_squares": one.sum_squares}
