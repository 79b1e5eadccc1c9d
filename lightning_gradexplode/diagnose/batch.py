"""The fields of a batch: their purposes, their names in sentences, and their scales."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from lightning_gradexplode.records import BatchFacts, Evidence, FieldFacts, LossTerm, Operand

MAX_SHOWN = 6
"""Largest number of rows, or of samples, that a sentence names."""

_TARGET = re.compile(
    "y|t|labels?|targets?|tgt|gt|truth|true|answers?|classe?s?|box(es)?|bbox(es)?|rewards?|returns?|scores?|ratings?|"
    "prices?|counts?|outputs?"
)
_MASK = re.compile("masks?|pad(ding)?|valid|len(gth)?s?|weights?")
_INDEX = re.compile("idx|ind(ex|ices)|ids?|keys?")


def targets(evidence: Evidence) -> list[FieldFacts]:
    """Return the fields that are targets.

    They are those that the graph of the loss or a loss of the replay reads, else those with the name of a target, else
    the last of several.
    """
    batch = evidence.batch
    if batch is None:
        return []
    if any(map(is_from_graph, batch.fields)):
        return [one for one in batch.fields if one.read_as == "target"]
    terms = evidence.replay.losses if evidence.replay is not None else ()
    taken = [one for one in batch.fields if any(is_same(one, given) for term in terms for given in term.inputs[1:2])]
    if len(taken) == len(batch.fields):
        return []  # an autoencoder's inputs are its targets, too
    named = [one for one in batch.fields if _is_named_target(one)]
    if taken or named:
        return taken or named
    parts: dict[str, list[FieldFacts]] = {}
    for one in batch.fields:
        parts.setdefault(re.split(r"[.\]]", one.name)[0], []).append(one)
    groups = [*parts.values()]
    if _are_of_several_loaders(groups):
        return [group[-1] for group in groups]
    return groups[-1] if len(batch.fields) > 1 else []


def _are_of_several_loaders(groups: Sequence[Sequence[FieldFacts]]) -> bool:
    """Return whether each group of fields is a batch of its own, of inputs and targets of the same kinds."""
    kinds = {tuple((one.dtype, len(one.shape)) for one in group) for group in groups}
    return len(groups) > 1 and len(kinds) == 1 and len(groups[0]) > 1 and len(set(kinds.pop())) > 1


def is_same(field: FieldFacts, operand: Operand) -> bool:
    """Return whether an operand is a field: their elements have the same number and the same extremes."""
    return (
        math.prod(field.shape) == math.prod(operand.shape)
        and (field.least, field.greatest) == (operand.least, operand.greatest)
        and (field.nan_count, field.inf_count) == (operand.nan_count, operand.inf_count)
    )


def is_of_batch(evidence: Evidence, term: LossTerm) -> bool:
    """Return whether the targets of a loss are a field of the batch, True if that is not known."""
    fields = evidence.batch.fields if evidence.batch is not None else ()
    if not fields or any(map(is_from_graph, fields)) or len(term.inputs) < 2:
        return True
    return is_known_of_batch(evidence, term)


def is_known_of_batch(evidence: Evidence, term: LossTerm) -> bool:
    """Return whether the targets of a loss are known to be a field of the batch."""
    fields = evidence.batch.fields if evidence.batch is not None else ()
    return len(term.inputs) > 1 and any(is_same(one, term.inputs[1]) for one in fields if not is_from_graph(one))


def source_in_graph(evidence: Evidence) -> FieldFacts | None:
    """Return the tensor without a gradient that the graph of a loss shows as the first that is not finite, if any."""
    replay, batch = evidence.replay, evidence.batch
    if replay is None or batch is None or replay.source != "batch":
        return None
    return next((one for one in batch.fields if one.name == replay.source_name and is_from_graph(one)), None)


def unusual_infinities(evidence: Evidence) -> FieldFacts | None:
    """Return the field of the batch whose infinities an operation of the replay made NaN of, None without one.

    They are finite in earlier batches, and hide from the loss behind functions such as tanh. NaN does not: a field with
    NaN and a finite loss is one that the module masks by intention.
    """
    replay, batch = evidence.replay, evidence.batch
    if replay is None or batch is None or replay.first is None or replay.source != "batch":
        return None
    field = next((one for one in nonfinite_fields(batch) if one.name == replay.source_name), None)
    return None if field is None or field.nan_count or field.usual_least is None else field


def is_from_graph(field: FieldFacts) -> bool:
    """Return whether a field is a tensor in the graph of a loss, since the batch itself is not known."""
    return field.read_as is not None


def is_computed(field: FieldFacts) -> bool:
    """Return whether a field in a graph is neither an input nor a target: most of them are computed in the step."""
    return field.read_as in ("constant", "factor")


def _is_named_target(field: FieldFacts) -> bool:
    words = _words(field)
    if is_mask(field):
        return True
    return _any(_TARGET, words) and not _any(_MASK, words) and not _any(_INDEX, words)


def is_mask(field: FieldFacts) -> bool:
    """Return whether a field is called "mask" and nothing else, as what a segmentation network learns is."""
    return _words(field) in (["mask"], ["masks"])


def is_index(field: FieldFacts) -> bool:
    """Return whether a field is called an index, or an identifier."""
    return _any(_INDEX, _words(field))


def _any(pattern: re.Pattern[str], words: list[str]) -> bool:
    return any(pattern.fullmatch(word) for word in words)


def _words(field: FieldFacts) -> list[str]:
    return list(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", field.name).lower()))


def inputs(evidence: Evidence) -> list[FieldFacts]:
    """Return the fields of floating-point numbers that are no targets and no masks."""
    batch = evidence.batch
    if batch is None:
        return []
    others = {one.name for one in targets(evidence)}
    return [one for one in batch.fields if one.name not in others and is_float(one) and not _any(_MASK, _words(one))]


def is_float(field: FieldFacts) -> bool:
    """Return whether a field holds floating-point numbers."""
    return "float" in field.dtype or field.dtype == "double" or field.dtype == "half"


def place_of(field: FieldFacts) -> str:
    """Return a field as it is written in code: ``batch[0]``, ``batch["image"]``; ``input of net.0`` of a graph."""
    if field.name in ("", "batch"):
        return "batch"
    if is_from_graph(field):
        return field.name
    parts = re.findall(r"\[[^\]]+\]|[^.\[\]]+", field.name.removeprefix("batch"))
    return "batch" + "".join(part if part.startswith("[") else f'["{part}"]' for part in parts)


def rows_of(rows: Sequence[int]) -> str:
    """Return row numbers as words: ``row 5``, ``rows 1, 4 and 9``, ``rows 0, 1, 2 and 13 more``."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    shown = [str(row) for row in rows[:MAX_SHOWN]]
    rest = len(rows) - len(shown)
    if rest:
        return f"rows {', '.join(shown)} and {rest} more"
    return f"rows {', '.join(shown[:-1])} and {shown[-1]}"


def samples_of(batch: BatchFacts, rows: Sequence[int]) -> str:
    """Return which samples of the dataset rows are, as a sentence; empty where that is not known."""
    indices = batch.sample_indices
    if indices is None or not rows or max(rows) >= len(indices):
        return ""
    found = [indices[row] for row in rows]
    shown = ", ".join(str(one) for one in found[:MAX_SHOWN])
    return f"In the dataset {'that is index' if len(found) == 1 else 'those are indices'} {shown}."


def size_of(field: FieldFacts | Operand) -> float | None:
    """Return the largest absolute finite value of a field or an operand."""
    ends = [abs(one) for one in (field.least, field.greatest) if one is not None]
    return max(ends) if ends else None


def scale_of(field: FieldFacts) -> float | None:
    """Return the root mean square of a field's finite values, None if there is none."""
    if field.std is None:
        return None
    return math.hypot(field.mean or 0.0, field.std)


def nonfinite_fields(batch: BatchFacts) -> Iterator[FieldFacts]:
    """Yield the fields with NaN or infinite elements that were finite in the batches before.

    A module is assumed to handle a field that always holds some. A field whose only other value is zero is an additive
    mask.
    """
    for field in batch.fields:
        if (not field.nan_count and not field.inf_count) or field.usual_nonfinite:
            continue
        if field.inf_count and not field.nan_count and field.least == 0.0 and field.greatest == 0.0:
            continue
        yield field


def running_averages(evidence: Evidence) -> str | None:
    """Return the class of the first module with running averages of its inputs, None if there is none."""
    return next((one.kind for one in evidence.run.modules if "BatchNorm" in one.kind), None)
