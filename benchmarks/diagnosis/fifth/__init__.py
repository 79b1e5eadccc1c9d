"""Runs modeled on further public reports, half of them outside of Lightning's Trainer."""
