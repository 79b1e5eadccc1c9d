"""Fifteen runs after public reports, written before any rule was read.

The first six, in `geometry`, are of reports that say enough to repeat them. The nine of `pictures` and `several` follow
the first usable results of ordinary searches, however ordinary, and were measured once at the commit that added them:
9 right, 9 among the first three causes, none wrong, unknown or without a diagnosis, no place asked for, and the first
remedy saves 6 of the 7 that fail; two are healthy. They are easier than the first six. Two of the reports, those of
`NoPolygons` and `AbsentClasses`, name no cause: an empty count was assumed. `SlicesOfLanes` trains with a thirtieth of
its rate too, which was not counted as a cause.
"""
