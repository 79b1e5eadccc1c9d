"""Runs after public reports as they come: the first threads with a confirmed cause, for searches by the symptom."""
