"""Names of parameters, grouped by module if there are too many."""

from __future__ import annotations

from collections.abc import Sequence


def by_module(names: Sequence[str], at_most: int) -> dict[str, list[int]]:
    """Group parameters by the deepest level of their modules at which there are few enough groups.

    Args:
        names: Names of parameters, with dots between modules.
        at_most: Largest number of groups; the outermost modules are not grouped further, however many there are.

    Returns:
        Places in ``names``, by the group's name: the parameter's own where nothing has to be grouped.
    """
    deepest = max((name.count(".") + 1 for name in names), default=1)
    for depth in range(deepest, 0, -1):
        groups: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            groups.setdefault(".".join(name.split(".")[:depth]), []).append(place)
        if len(groups) <= at_most:
            break
    return groups if names else {}
