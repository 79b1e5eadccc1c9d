"""Runs after public reports as they come: the first threads with a confirmed cause, for searches in further fields.

As for `fifteenth` to `twentieth`, with searches that they did not use ("neural spline flow log likelihood nan during
training inputs outside interval", "mixture density network loss nan sigma collapses to zero fix", "DPO GRPO RLHF
training loss nan grad norm ratio exp overflow advantages std zero fix"): the first thread in the order of the results
in which a training fails by itself, the cause is confirmed, no earlier set follows it, and a small run can keep the
mechanism. Of 63 searches 22 gave such a thread; one more run comes from a search for the words of a thread. Eleven of
the runs are plain loops, twelve are in Lightning. Kinds, places and cures were written down before a run was measured,
by an author who had not read the rules.
"""
