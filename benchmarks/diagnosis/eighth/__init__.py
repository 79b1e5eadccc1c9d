"""Runs after public reports taken in the order in which searches return them; every second one is in ``ninth``."""
