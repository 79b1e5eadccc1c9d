"""Histograms for TensorBoard, from counts that are already there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_gradexplode.publish.base import Publisher
from lightning_gradexplode.publish.buckets import Buckets, buckets
from lightning_gradexplode.records import Histogram


class TensorBoardPublisher(Publisher):
    """Writes to a logger whose experiment is a ``SummaryWriter``."""

    takes_histograms = True

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Tell whether the experiment is a writer of TensorBoard events."""
        return hasattr(experiment, "add_histogram_raw")

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms; one of no finite value at all is left out, for TensorBoard cannot show it."""
        for name, histogram in histograms.items():
            if histogram.finite:
                self._write(name, buckets(histogram), step)

    def _write(self, name: str, shown: Buckets, step: int) -> None:
        middles = (shown.edges[:-1] + shown.edges[1:]) / 2
        self.logger.experiment.add_histogram_raw(
            tag=name,
            # The server takes `min` as the first bucket's left border, and the limits are right borders.
            min=float(shown.edges[0]),
            max=float(shown.edges[-1]),
            num=int(shown.counts.sum()),
            sum=float(np.dot(middles, shown.counts)),
            sum_squares=float(np.dot(np.square(middles), shown.counts)),
            bucket_limits=shown.edges[1:].tolist(),
            bucket_counts=shown.counts.tolist(),
            global_step=step,
        )
