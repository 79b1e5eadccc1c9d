"""MLflow: findings as tags and reports as artifacts; it has no histograms."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.scalars import PER_PARAMETER, PREFIX
from lightning_gradexplode.records import Diagnosis, Finding, Report

_REFUSED = re.compile(r"[^\w.\- ]")
"""Characters that MLflow refuses in the name of a metric, on Windows at least, and slashes."""

_MAX_LENGTH = 180
"""Number of characters of a parameter's name; MLflow takes 250 of the whole, and file systems 255 bytes."""


class MLFlowAdapter(LoggerAdapter):
    """Writes to a logger whose experiment is an MLflow client."""

    package = "mlflow"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars, those of parameters as ``gradexplode/parameter/<quantity>/<parameter>``.

        MLflow's file store has one file per metric, so that ``grad_norm`` cannot be a folder as well. One name that
        MLflow refuses costs all values of a step; in such a name of a parameter the characters in question become
        ``_``, and a number is appended.
        """
        super().scalars({_file_name(name): value for name, value in values.items()}, step)

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Set tags: the latest finding of each severity."""
        tag = f"{PREFIX}.{finding.severity.name.lower()}"
        self.experiment.set_tag(self.logger.run_id, tag, f"{finding}\n{advice}")

    def diagnosis(self, diagnosis: Diagnosis, step: int) -> None:
        """Set a tag: the diagnosis of the latest incident."""
        self.experiment.set_tag(self.logger.run_id, f"{PREFIX}.diagnosis", diagnosis.markdown())

    def report(self, report: Report) -> None:
        """Log the report's folder, its picture among the files, as artifacts."""
        self.experiment.log_artifacts(self.logger.run_id, str(report.folder), artifact_path=PREFIX)


def _file_name(name: str) -> str:
    prefix, _, rest = name.partition("/")
    quantity, _, parameter = rest.partition("/")
    if not parameter or quantity not in PER_PARAMETER:
        return name
    return f"{prefix}/parameter/{quantity}/{_accepted(parameter)}"


def _accepted(name: str) -> str:
    """Return the name of a parameter as MLflow takes it, and as a file that is no other parameter's folder."""
    accepted = _REFUSED.sub("_", name)
    if accepted == name and name.strip(".") and len(name) <= _MAX_LENGTH:
        return name
    return f"{accepted[:_MAX_LENGTH]}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
