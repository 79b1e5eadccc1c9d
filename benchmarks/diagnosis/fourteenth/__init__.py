"""Runs after public reports, picked for fields and mechanisms that no earlier set has, before any rule was read.

The reports come from about 50 searches of threads on GitHub, by mechanism and by field. Their cause was found or
confirmed in the thread, and no earlier set follows them. Each run keeps the mechanism and the change that cured it,
not the size. Kinds, places and cures were written down before a run was measured.
"""
