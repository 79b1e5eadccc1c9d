"""Runs with other models, data and situations than the first ones; rules were changed for them after a first measurement."""
