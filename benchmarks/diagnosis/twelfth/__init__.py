"""Runs after public reports picked for their variety, written before any rule was read.

The reports come from about 40 searches of threads on GitHub, one or two for each field: agents, flows, adversaries,
detection, graphs, series, equations, sounds, adapters, language, metric learning, counts, and optimizers that users
write themselves. Of each search the first thread was taken whose cause was found and that no earlier set follows. Each
run keeps the mechanism and the change that cured it, not the size.
"""
