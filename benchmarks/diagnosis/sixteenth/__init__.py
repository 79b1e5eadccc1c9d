"""Runs after public reports as they come: the first threads with a confirmed cause, for other searches.

As for `fifteenth`, with searches that it did not use ("loss nan only with larger batch size solved", "nan loss in
attention", "knowledge distillation kl loss nan"): the first one or two threads in the order of the results in which a
training fails by itself, the cause is confirmed, no earlier set follows them, and a small run can keep the mechanism.
Of 36 searches 16 gave such threads. Half of the runs are in Lightning, half are plain loops. Kinds, places and cures
were written down before a run was measured, by an author who had not read the rules.
"""
