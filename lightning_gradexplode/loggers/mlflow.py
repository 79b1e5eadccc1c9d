"""MLflow: findings as tags and reports as artifacts; it has no histograms."""

from __future__ import annotations

from typing import Any

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records import Finding, Report


class MLFlowAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is an MLflow client."""

    @classmethod
    def accepts(cls, experiment: Any) -> bool:
        """Tell whether the experiment is a client of MLflow."""
        return type(experiment).__module__.partition(".")[0] == "mlflow"

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Set tags: the latest finding of each severity."""
        where = f" in {finding.where}" if finding.where else ""
        text = f"step {finding.step}: {finding.sign}{where}: {finding.message}. {advice}"
        self.logger.experiment.set_tag(self.logger.run_id, f"{PREFIX}.{finding.severity.name.lower()}", text)

    def report(self, report: Report) -> None:
        """Log the report's folder, its picture among the files, as artifacts."""
        self.logger.experiment.log_artifacts(self.logger.run_id, str(report.folder), artifact_path=PREFIX)
