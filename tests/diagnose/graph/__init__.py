"""Tests of what autograd graphs show."""
