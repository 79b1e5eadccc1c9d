"""What the first operation without a finite result has done wrong: its fault, and the correction of its line."""

from lightning_gradexplode.diagnose.faults.fault import Fault
from lightning_gradexplode.diagnose.faults.first_operation import fault_of

__all__ = ["Fault", "fault_of"]
