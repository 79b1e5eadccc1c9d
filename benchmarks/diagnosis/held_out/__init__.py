"""Runs that the authors of rules never look at."""
