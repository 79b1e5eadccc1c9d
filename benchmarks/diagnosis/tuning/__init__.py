"""Runs on which the rules were developed."""
