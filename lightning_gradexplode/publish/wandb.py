"""Histograms and alerts for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_gradexplode.publish.base import Publisher
from lightning_gradexplode.publish.buckets import buckets
from lightning_gradexplode.records import Finding, Histogram, Severity


class WandbPublisher(Publisher):
    """Writes to a logger whose experiment is a W&B run, online or offline."""

    takes_histograms = True

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Tell whether the experiment is a W&B run."""
        return type(experiment).__module__.partition(".")[0] == "wandb"

    def histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write histograms at the step that Lightning's logger makes the x-axis; one of no finite value is left out."""
        import wandb

        shown = {name: buckets(histogram) for name, histogram in histograms.items() if histogram.finite}
        values: dict[str, Any] = {
            name: wandb.Histogram(np_histogram=(bucket.counts.tolist(), bucket.edges.tolist()))
            for name, bucket in shown.items()
        }
        self.logger.experiment.log({**values, "trainer/global_step": step})

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Send an alert: level ERROR if the finding is critical, WARN if it is a warning."""
        if finding.severity < Severity.WARNING:
            return
        from wandb.sdk.wandb_alerts import AlertLevel

        where = f" in {finding.where}" if finding.where else ""
        self.logger.experiment.alert(
            title=f"gradexplode: {finding.sign}{where}",
            text=f"Step {finding.step}: {finding.message} (value {finding.value:.4g}, limit {finding.limit:.4g}).",
            level=AlertLevel.ERROR if finding.severity is Severity.CRITICAL else AlertLevel.WARN,
        )
