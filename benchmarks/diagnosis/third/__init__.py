"""Runs modeled on public reports; rules were changed for them after a first measurement."""
