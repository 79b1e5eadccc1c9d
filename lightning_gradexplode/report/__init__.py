"""The report of a run: the history of its last steps, its folder, its files and the HTML page.

What a training loop's engine calls, and when:

- Before the first step: ``folder = ReportFolder(base_folder(...), run_id)`` and ``folder.announce(now)``, on the main
  process.
- At each step: ``recorder.add(record)`` of its optimizer, and ``gradient_history.add(record)``.
- Once the responses to an incident have acted: ``write_report(folder.claim(), ReportContent(...))``, and the `Report`
  that it returns to ``LoggerCollection.report``, the diagnosis to ``LoggerCollection.diagnosis``, both to
  ``Console.incident``.
- Where a run ends abnormally: ``write_steps(folder.claim(), content)``.
- At the end of a run with ``report="always"``: ``write_report`` with a content whose diagnosis is None.
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
