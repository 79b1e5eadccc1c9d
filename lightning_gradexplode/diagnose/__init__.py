"""Diagnosis: evidence and replay of a step to ranked causes and remedies."""

from lightning_gradexplode.diagnose.calm import diagnose_calm
from lightning_gradexplode.diagnose.ranking import diagnose
from lightning_gradexplode.diagnose.remedies.signs import advice_for

__all__ = ["advice_for", "diagnose", "diagnose_calm"]
