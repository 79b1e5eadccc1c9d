"""Runs after public reports as they come: the first threads with a confirmed cause for 15 of 18 ordinary searches.

The searches are what people type ("loss nan custom dataset", "nan loss transformer mask"), and their results were taken
in the order in which they come: the first one or two threads in which a training fails by itself, the cause is
confirmed, and a small run can keep its mechanism. Where the words alone gave too few of them, the search was repeated
with words such as "solved"; half of the runs come from there. Three searches gave none. Nothing was picked for its
variety or its difficulty. Kinds, places and cures were written down before a run was measured, by an author who had not
read the rules.
"""
