"""Tensors to numbers: gradients, weight changes and histograms."""
