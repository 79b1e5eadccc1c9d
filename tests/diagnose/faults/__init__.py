"""Tests of what an operation has done wrong."""
