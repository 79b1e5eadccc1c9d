"""Runs after public reports picked for their variety, of other fields and mechanisms than the set before.

The reports come from about 40 searches of threads on GitHub, by mechanism and by field: forecasts of weather, depth
maps, speech, recommendations, atoms, boxes, capsules, diffusion, translation, simulated bodies, and parts that users
write themselves. For nearly each kind of cause a report was taken whose cause was found or named in its thread and that
no earlier set follows. Kinds and places were written down before any run was measured.
"""
