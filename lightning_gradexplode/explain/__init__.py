"""Names of version 0.1.0, now in other packages; to be removed in the next release."""

import warnings

from lightning_gradexplode.diagnose import advice_for
from lightning_gradexplode.records import Diagnosis
from lightning_gradexplode.report import Recorder

__all__ = ["Diagnosis", "Recorder", "advice_for"]

warnings.warn(
    "lightning_gradexplode.explain is deprecated: Diagnosis is in lightning_gradexplode.records, Recorder in "
    "lightning_gradexplode.report, advice_for in lightning_gradexplode.diagnose",
    DeprecationWarning,
    stacklevel=2,
)
