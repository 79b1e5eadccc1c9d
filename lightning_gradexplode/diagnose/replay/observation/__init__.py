"""Observation of a step on the copy, operation by operation, without writes to the memory of the run."""
