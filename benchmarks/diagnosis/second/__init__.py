"""Runs with other models, data and situations; rules were changed for them after a first measurement."""
