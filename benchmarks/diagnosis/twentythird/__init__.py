"""Runs after public reports as they come: the first threads with a confirmed cause, for searches by the symptom.

As for `fifteenth` to `twentysecond`, with searches that they did not use, which say what a person sees and name no
operation ("metric learning triplet loss stuck at margin never decreases embeddings all identical, solved it was",
"video action recognition training accuracy stays 1 percent loss does not change, fixed", "fine-tuning llama loss
suddenly jumps to 10 and stays there, solved"): the first one or two threads in the order of the results in which a
training fails by itself, the cause is confirmed, no earlier set follows it, and a small run can keep the mechanism. Of
49 searches 13 gave such a thread, two of them two; the threads of two more were given up, since small runs after them
did not fail, and about nine that look confirmed were passed over, mostly as they leave the mechanism open. Threads were
read in the excerpts that the search returns. Seven of the runs are plain loops, six are in Lightning, two are in the
Trainer of Hugging Face. Kinds, places and cures were written down before a run was measured, by an author who had not
read the rules; the runs were changed afterwards until they failed and trained as the reports say.
"""
