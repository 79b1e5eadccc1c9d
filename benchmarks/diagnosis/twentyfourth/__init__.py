"""Runs after public reports as they come: the first threads with a confirmed cause, for searches by the symptom.

As for `fifteenth` to `twentythird`, with searches that they did not use, which say what a person sees and name no
operation ("link prediction graph attention training auc stays 0.5 loss 0.69 whole time, fixed", "pose keypoint network
heatmaps all zero, loss very small but nothing learned, what I did to fix it", "continuous control agent actor outputs
saturate at max action and never change, solved"): the first one or two threads in the order of the results in which a
training fails by itself, the cause is confirmed, no earlier set follows it, and a small run can keep the mechanism. Of
74 searches 15 gave such a thread that is followed here, two of them two; one more run comes from a search for the words
of a thread. Two threads were given up, since small runs after them did not fail, and a few that look confirmed were
passed over, as they leave the mechanism open or repeat that of an earlier set. Threads were read in the excerpts that
the search returns. Nine of the runs are plain loops, seven are in Lightning, one is with Fabric, one in the Trainer of
Hugging Face. Kinds, places and cures were written down before a run was measured, by an author who had not read the
rules; the runs were changed afterwards until they failed and trained as the reports say.
"""
