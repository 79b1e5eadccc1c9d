"""The fault of the first operation with a non-finite result, and the correction of its line."""

from lightning_gradexplode.diagnose.faults.fault import Fault
from lightning_gradexplode.diagnose.faults.first_operation import fault_of

__all__ = ["Fault", "fault_of"]
