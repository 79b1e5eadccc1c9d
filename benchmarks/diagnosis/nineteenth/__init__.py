"""Runs after public reports as they come: the first thread with a confirmed cause, for searches in further fields.

As for `fifteenth` to `eighteenth`, with searches that they did not use ("molecular property prediction energy forces
training nan", "quantization aware training loss nan", "pytorch cnn loss not decreasing at all stays at 0.693"): the
first thread in the order of the results in which a training fails by itself, the cause is confirmed, no earlier set
follows it, and a small run can keep the mechanism. Of 51 searches 25 gave such a thread; one run follows a second
thread about the same network as well. Thirteen of the runs are in Lightning, twelve are plain loops. Kinds, places and
cures were written down before a run was measured, by an author who had not read the rules.
"""
