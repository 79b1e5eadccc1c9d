"""Records and findings to understanding: the recorder of the last steps, and advice."""

from lightning_gradexplode.explain.advice import advice_for
from lightning_gradexplode.explain.recorder import Recorder

__all__ = ["Recorder", "advice_for"]
