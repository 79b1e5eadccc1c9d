"""What is plainly wrong in a run without an incident, such as weights with which nothing is learned."""

from lightning_gradexplode.diagnose.calm.diagnosis import calm_causes, diagnose_calm

__all__ = ["calm_causes", "diagnose_calm"]
