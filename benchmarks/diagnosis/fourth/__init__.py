"""Runs modeled on further public reports; rules were changed for them after a first measurement."""
