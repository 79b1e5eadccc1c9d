"""Trainings of other packages, as their users run them, with and without faults: ``python -m benchmarks.packages``."""
