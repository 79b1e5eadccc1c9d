"""Runs after public reports as they come: the first threads with a confirmed cause for each of 18 ordinary searches.

The searches are what people type ("loss nan custom dataset", "exploding gradients"), and their results were taken in
the order in which they come: the first one or two threads in which a training fails by itself, the cause is confirmed,
and a small run can keep its mechanism. Nothing was picked for its variety or its difficulty. Kinds, places and cures
were written down before a run was measured, by an author who had not read the rules.
"""
