"""A diagnosis for the console, by ``rich``, which is imported only if a diagnosis is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradexplode.records.text import sentence, without_markup

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lightning_gradexplode.records.diagnosis import Cause, Diagnosis

_BAR = 10
"""Characters of the bar for a confidence of 1."""


def rendered_cause(cause: Cause) -> RenderableType:
    """Return kind, place and confidence of a cause in one line, and its evidence below."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    filled = round(_BAR * min(max(cause.confidence, 0.0), 1.0))
    title = Text.assemble(
        ("\u2588" * filled, "red"),
        ("\u2591" * (_BAR - filled), "dim"),
        f" {cause.confidence:4.0%} ",
        (cause.kind, "bold"),
        cause.location,
    )
    return Group(
        title, *(Padding(Text(f"\u2022 {without_markup(one)}"), (0, 0, 0, _BAR + 6)) for one in cause.evidence)
    )


def rendered(diagnosis: Diagnosis) -> RenderableType:
    """Return what happened, the causes with their evidence, and what to do, in a panel."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[RenderableType] = [Text(without_markup(diagnosis.what))]
    if diagnosis.causes:
        parts += [Text("\nWhy", style="bold"), *(rendered_cause(one) for one in diagnosis.causes)]
    if diagnosis.remedies:
        parts.append(Text("\nWhat to do", style="bold"))
        parts += [Text(f"{place}. {without_markup(sentence(one))}") for place, one in enumerate(diagnosis.remedies, 1)]
    since = "" if diagnosis.since is None else f", with signs since step {diagnosis.since}"
    return Panel(Group(*parts), title=Text(f"Incident at step {diagnosis.step}{since}"), title_align="left")
