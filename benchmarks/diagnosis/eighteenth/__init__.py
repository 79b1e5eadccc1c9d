"""Runs after public reports as they come: the first threads with a confirmed cause, for searches in further fields.

As for `fifteenth` to `seventeenth`, with searches that they did not use ("arcface metric learning loss nan easy margin
sqrt gradient", "survival analysis deep cox loss nan during training", "multi gpu training loss nan but single gpu works
fine solved"): the first one or two threads in the order of the results in which a training fails by itself, the cause
is confirmed, no earlier set follows them, and a small run can keep the mechanism. Of 55 searches 18 gave such threads;
one more run comes from a search for the words of a thread. Eleven of the runs are in Lightning, ten are plain loops.
Kinds, places and cures were written down before a run was measured, by an author who had not read the rules.
"""
