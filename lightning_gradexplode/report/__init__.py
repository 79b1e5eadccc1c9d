"""The report of a run: history of the last steps, folder, files and HTML page.

The engine calls:

- before the first step, on the main process: ``folder = ReportFolder(base_folder(...), run_id)`` and
  ``folder.announce(now)``;
- at each step: ``recorder.add(record)`` of the optimizer, and ``gradient_history.add(record)``;
- after the responses to an incident: ``write_report(folder.claim(), ReportContent(...))``. The returned `Report` is
  passed to ``LoggerCollection.report`` and, with the diagnosis, to ``Console.incident``;
- if a run ends abnormally: ``write_steps(folder.claim(), content)``;
- at the end of a run with ``report="always"``: ``write_report`` with a content whose diagnosis is None.
"""

from lightning_gradexplode.report.folder import ReportFolder, base_folder, public_name
from lightning_gradexplode.report.gradient_history import GradientHistory
from lightning_gradexplode.report.page import page
from lightning_gradexplode.report.recorder import Recorder
from lightning_gradexplode.report.writer import find_report, read_report, write_report, write_steps

__all__ = [
    "GradientHistory",
    "Recorder",
    "ReportFolder",
    "base_folder",
    "find_report",
    "page",
    "public_name",
    "read_report",
    "write_report",
    "write_steps",
]
