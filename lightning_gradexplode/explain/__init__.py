"""Records and findings to understanding: the recorder of the last steps, advice, diagnosis and report."""

from lightning_gradexplode.explain.advice import advice_for
from lightning_gradexplode.explain.diagnosis import Diagnosis, diagnose
from lightning_gradexplode.explain.recorder import Recorder
from lightning_gradexplode.explain.report import write_report

__all__ = ["Diagnosis", "Recorder", "advice_for", "diagnose", "write_report"]
