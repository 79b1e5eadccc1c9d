"""The content of a report, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from lightning_gradexplode.records.diagnosis import Diagnosis
from lightning_gradexplode.records.evidence import Evidence
from lightning_gradexplode.records.finding import Finding
from lightning_gradexplode.records.histogram import Histogram
from lightning_gradexplode.records.html import frame
from lightning_gradexplode.records.module_gradients import ModuleGradients


@dataclass(frozen=True, slots=True, eq=False)
class ReportContent:
    """The content of a report.

    Args:
        run_name: Name of the run in its logger; never a path.
        run_id: Identifier of the run, by which its files are recognized.
        written: Date and time in UTC, in the format of ``datetime.isoformat``.
        evidence: Evidence of the latest incident; without one, facts and history of the run.
        diagnosis: Diagnosis of the latest incident, None for a run without one.
        findings: All findings of the run, oldest first.
        gradients: Steps and histograms of the gradient elements of one parameter, oldest first: of the last calm step
            before the latest finding, and of the latest step with a finding; in a healthy run of the latest step only.
        gradients_of: Name of that parameter: the one that the diagnosis names, else the one with the largest gradient.
        module_gradients: The latest error gradients of modules, None if none were measured.
    """

    run_name: str
    run_id: str
    written: str
    evidence: Evidence
    diagnosis: Diagnosis | None = None
    findings: tuple[Finding, ...] = ()
    gradients: tuple[tuple[int, Histogram], ...] = ()
    gradients_of: str = ""
    module_gradients: ModuleGradients | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """The files of a report.

    Args:
        step: The step at which it was written.
        folder: The folder of all its files.
        page: The HTML page, which needs no other file; None if there is none.
        diagnosis: The diagnosis in Markdown; empty if there is none.
        picture: The heat map of the gradient norms, parameter by step, as a PNG file; empty if there is none.
    """

    step: int
    folder: Path
    page: Path | None = None
    diagnosis: str = ""
    picture: bytes = b""

    def _repr_html_(self) -> str:
        if self.page is None:
            return escape(self.folder.name)
        return frame(self.page.read_text(encoding="utf-8"))
