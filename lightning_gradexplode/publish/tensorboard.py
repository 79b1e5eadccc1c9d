"""Histograms for TensorBoard, from counts that are already there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.publish.base import Publisher
from lightning_gradexplode.publish.buckets import Condensed, condensed
from lightning_gradexplode.records import Histogram


class TensorBoardPublisher(Publisher):
    """Writes to a logger whose experiment is a ``SummaryWriter``, torch's own or one that is used like it."""

    takes_histograms = True

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Tell whether the experiment is a writer of TensorBoard events."""
        return hasattr(experiment, "add_histogram_raw")

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms; one of no finite value at all is left out, for TensorBoard cannot show it."""
        shown = condensed(histograms)
        experiment = self.logger.experiment
        if not shown:
            return
        if any(kind.__module__.startswith("torch.utils.tensorboard") for kind in type(experiment).__mro__):
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
