"""Runs after public reports as they come: the first threads with a confirmed cause, for searches in further fields.

As for `fifteenth` to `nineteenth`, with searches that they did not use ("sudden NaN loss when training DETR on custom
dataset boxes assert, solved", "recommendation BPR loss log sigmoid nan inf training fix logsigmoid", "sinkhorn optimal
transport loss nan epsilon too small log domain fix"): the first one or two threads in the order of the results in which
a training fails by itself, the cause is confirmed, no earlier set follows it, and a small run can keep the mechanism.
Of 53 searches 18 gave such a thread, two of them two. Eleven of the runs are plain loops, nine are in Lightning. Kinds,
places and cures were written down before a run was measured, by an author who had not read the rules.
"""
