"""Runs after public reports as they come: the first threads with a confirmed cause, for searches by the symptom.

As for `fifteenth` to `twentyfirst`, with searches that they did not use, which say what a person sees before the cause
is known and name no operation ("NeRF training psnr suddenly drops and rendering becomes blank, fixed by changing",
"spiking neural network does not train, output spikes all zero, accuracy 10 percent, solved", "face recognition training
loss stuck and accuracy 0, solved with different learning rate"): the first one or two threads in the order of the
results in which a training fails by itself, the cause is confirmed, no earlier set follows it, and a small run can keep
the mechanism. Of 51 searches 16 gave such a thread, two of them two. Nine of the runs are plain loops, eight are in
Lightning, one is in the Trainer of Hugging Face. Kinds, places and cures were written down before a run was measured,
by an author who had not read the rules.
"""
