"""Usual networks, each with every fault that it can have: whether the diagnosis names the fault.

Unlike the cases of `benchmarks.diagnosis`, which rebuild failures that were reported, these are faults of one kind each
in ordinary code: `tasks` has the networks and their data, `faults` the faults and the kinds of cause that are right,
and `runs` trains a task with a fault in Lightning's Trainer or in a loop of plain PyTorch.
"""
