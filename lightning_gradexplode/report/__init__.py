"""The report of a run: the history of its last steps, figures and the HTML page."""

from lightning_gradexplode.report.recorder import Recorder
from lightning_gradexplode.report.writer import write_report

__all__ = ["Recorder", "write_report"]
