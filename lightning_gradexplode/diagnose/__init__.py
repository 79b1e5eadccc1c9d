"""Diagnosis: evidence and replay of a step to ranked causes and remedies."""

from lightning_gradexplode.diagnose.advice import advice_for
from lightning_gradexplode.diagnose.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "advice_for", "diagnose"]
