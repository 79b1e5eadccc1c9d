"""Accuracy of the diagnosis: whether it names the true cause of a failing run, and whether its first remedy saves it.

A case (`case`) is a small training run that fails for a known reason, with the settings that cure it. `tuning` has the
cases on which rules may be developed, `held_out` those that the authors of rules never look at; no case of one half is
a variation of a case of the other. The sets `second` to `seventh` were written later, in this order; each was measured
once before rules were changed for it. Every second case written for `seventh` is in `left_out`, which was counted
before and after that without a look at single cases.

`runs` trains a case and measures its outcome independently of the monitor, `verify` checks the cases, `remedies`
applies a remedy by the words of its sentence, and `grading` compares a diagnosis with the truth.
"""
