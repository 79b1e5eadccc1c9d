"""Whether the diagnosis names the true cause of a failing run, and whether its first remedy saves the run.

A case (`case`) is a small training run that fails for a known reason, with the settings that cure it. `tuning` holds
the cases that the rules may be written on, `held_out` those that their authors never look at; no case of one half is a
variation of a case of the other. `runs` trains a case and measures what becomes of it without the monitor's help,
`verify` checks the cases themselves, `remedies` applies a remedy by the words of its sentence, and `grading` compares a
diagnosis with the truth.
"""
