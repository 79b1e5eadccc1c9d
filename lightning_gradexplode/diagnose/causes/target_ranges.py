"""How targets are brought into the range that a loss takes."""

from __future__ import annotations

from lightning_gradexplode.diagnose.batch import is_from_graph, place_of, targets
from lightning_gradexplode.records import Evidence, FieldFacts


def code_of(target: FieldFacts | None) -> str:
    """Return a target as code writes it, ``target`` for that of a graph, whose name is not known."""
    if target is None:
        return "targets"
    return "target" if is_from_graph(target) else place_of(target)


def range_remedies(place: str, least: float, greatest: float, *, are_probabilities: bool) -> tuple[str, ...]:
    """Return remedies that bring targets of this range to probabilities, or to counts."""
    if not are_probabilities:
        return (
            f"look at the values of `{place}` below 0 and repair or drop them: `{place} = {place}.clamp(min=0)`",
            "or use a loss that takes any number: `F.mse_loss(prediction, target)`",
        )
    if greatest - least == 1:
        code = f"{place} - {least:g}".replace("- -", "+ ")
        return (f"number the classes from 0, so that the targets range from 0 to 1: `{place} = {code}`",)
    if least >= 0:
        code = f"{place} / {greatest:g}"
    elif least >= -1 and greatest <= 1:
        code = f"({place} + 1) / 2"
    else:
        code = f"({place} - {least:.4g}) / {greatest - least:.4g}".replace("- -", "+ ")
    return (f"bring the targets into the range from 0 to 1: `{place} = {code}`",)


def has_label_between(evidence: Evidence, least: float, greatest: float) -> bool:
    """Return whether labels from -1 to 1 include zeros: then the mean of their squares is below one."""
    moments = [
        (one.mean, one.std)
        for one in targets(evidence)
        if one.is_integral and (one.least, one.greatest) == (least, greatest) == (-1.0, 1.0)
    ]
    return any(mean is not None and std is not None and mean**2 + std**2 < 0.99 for mean, std in moments)


def third_label_remedies(place: str) -> tuple[str, ...]:
    """Return remedies for labels -1, 0 and 1: two classes with -1 for missing labels, or three classes."""
    return (
        f"if -1 marks missing labels, leave them out of the loss: `known = {place} >= 0`, and `prediction[known]` with "
        f"`{place}[known]` in it",
        f"if -1, 0 and 1 are three classes, take three outputs: `F.cross_entropy(outputs, ({place} + 1).long())`",
    )
