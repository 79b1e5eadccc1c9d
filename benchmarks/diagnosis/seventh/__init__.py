"""Runs after public reports of further fields; every second one that was written is in ``left_out`` instead."""
