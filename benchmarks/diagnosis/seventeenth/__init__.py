"""Runs after public reports as they come: the first threads with a confirmed cause, for yet other searches.

As for `fifteenth` and `sixteenth`, with searches that they did not use ("triplet loss becomes nan during training",
"pose estimation acos rotation loss nan", "pytorch lightning train_loss nan solved my mistake"): the first one or two
threads in the order of the results in which a training fails by itself, the cause is confirmed, no earlier set follows
them, and a small run can keep the mechanism. Of 40 searches 13 gave such threads. Half of the runs are in Lightning,
half are plain loops. Kinds, places and cures were written down before a run was measured, by an author who had not read
the rules.
"""
