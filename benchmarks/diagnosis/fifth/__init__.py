"""Runs in the manner of further public reports, many of them outside of Lightning's Trainer."""
