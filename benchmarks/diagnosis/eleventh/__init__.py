"""Runs after public reports, written before any rule was read.

Each report is among the first results of an ordinary search of threads on GitHub that say what the cause was; the query
stands in the docstring of its run. Reports that an earlier set follows were left out, and so were those that need a
device, or whose cause nobody confirmed. Each run keeps the mechanism and the change that cured it, not the size.
"""
