"""The diagnosis of an incident: what happened, and its likely causes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_gradexplode.records.html import table
from lightning_gradexplode.records.text import printable, sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

CauseKind = Literal[
    "nonfinite-input",
    "nonfinite-target",
    "target-out-of-range",
    "empty-reduction",
    "unscaled-data",
    "outlier-batch",
    "undefined-operation",
    "forward-overflow",
    "half-precision",
    "learning-rate",
    "learning-rate-jump",
    "optimizer-state",
    "accumulated-gradients",
    "initialization",
    "depth",
    "recurrence",
    "loss-without-floor",
    "moving-target",
    "unknown",
]
"""Kinds of cause; see the table in the documentation."""

CAUSE_KINDS: tuple[str, ...] = get_args(CauseKind)

MIN_CONFIDENCE = 0.35
"""A cause with less confidence is faint, and never the first of a diagnosis."""

_NAMED_BY_KIND = "the learning rate"
"""A place that the kind of the cause names already."""

SCHEMA_VERSION = 1
"""Version of the layout of ``diagnosis.json``."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One possible cause of an incident.

    Args:
        kind: One of `CAUSE_KINDS`.
        where: The operation, module, field or parameter for which there is evidence, None if there is none.
        evidence: Sentences with numbers.
        confidence: From 0 to 1.
        remedies: Concrete changes that would help in this run, the most helpful first.
    """

    kind: str
    where: str | None
    evidence: tuple[str, ...]
    confidence: float
    remedies: tuple[str, ...] = ()

    @property
    def is_faint(self) -> bool:
        """Whether its confidence is below 0.35: the report lists it, the console does not."""
        return self.confidence < MIN_CONFIDENCE

    @property
    def location(self) -> str:
        """The place as text that follows the kind, such as ``" in batch[0]"``; empty if there is none."""
        if not self.where:
            return ""
        if self.where.startswith(_NAMED_BY_KIND):
            return self.where.removeprefix(_NAMED_BY_KIND)
        return f" in {self.where}"

    def __rich__(self) -> RenderableType:
        from lightning_gradexplode.records.diagnosis_console import rendered_cause

        return rendered_cause(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the cause as plain values for JSON."""
        return {
            "kind": self.kind,
            "where": self.where,
            "evidence": list(self.evidence),
            "confidence": round(self.confidence, 3) if math.isfinite(self.confidence) else 0.0,
            "remedies": list(self.remedies),
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What happened in an incident, and why.

    Args:
        step: The step at which it began.
        what: What happened, in one or two sentences.
        where: Where it began, None if there is no evidence for a place.
        since: The first step with a sign, if it is before the first critical finding and led up to it; else None.
        causes: At least one cause, likeliest first; of kind ``"unknown"`` if there is no evidence for any.
        remedies: What to do, the most helpful first, for all causes together.
    """

    step: int
    what: str
    where: str | None
    since: int | None
    causes: tuple[Cause, ...]
    remedies: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain values for strict JSON.

        The keys of the dictionary are:

        - ``version``: `SCHEMA_VERSION`, which increases if a key changes its meaning or is removed; new keys may be
          added.
        - ``step``: the step at which the incident began, a whole number.
        - ``since``: the first step with a sign, if it is before the first critical finding and led up to it; else null.
        - ``what``: what happened, in one or two sentences.
        - ``where``: where it began, null if there is no evidence for a place.
        - ``causes``: likeliest first, at least one; each an object with ``kind`` (one of `CAUSE_KINDS`), ``where``
          (text or null), ``evidence`` (sentences), ``confidence`` (from 0 to 1) and ``remedies`` (sentences, with code
          between backticks).
        - ``remedies``: what to do, the most helpful first, for all causes together.
        """
        return {
            "version": SCHEMA_VERSION,
            "step": int(self.step),
            "since": None if self.since is None else int(self.since),
            "what": self.what,
            "where": self.where,
            "causes": [cause.as_dict() for cause in self.causes],
            "remedies": list(self.remedies),
        }

    def __rich__(self) -> RenderableType:
        from lightning_gradexplode.records.diagnosis_console import rendered

        return rendered(self)

    def _repr_html_(self) -> str:
        causes = [
            (f"why {place}", f"{cause.kind}{cause.location} ({cause.confidence:.0%}): {' '.join(cause.evidence)}")
            for place, cause in enumerate(self.causes, 1)
        ]
        remedies = [(f"do {place}", sentence(remedy)) for place, remedy in enumerate(self.remedies, 1)]
        since = self.step if self.since is None else self.since
        where = [("where", self.where or "no single place stands out"), ("since", f"step {since}")]
        return table(f"Incident at step {self.step}", [("what", self.what), *causes, *remedies, *where])

    def markdown(self) -> str:
        """Return the diagnosis as Markdown: what happened, causes with evidence, what to do, where, since when."""
        lines = [f"**What:** {_escaped(self.what)}"]
        for place, cause in enumerate(self.causes, 1):
            lines.append(
                f"**Cause {place}:** {cause.kind}{_escaped(cause.location)} (confidence {cause.confidence:.0%})"
            )
            lines += ["\n".join(f"- {_escaped(one)}" for one in cause.evidence)] if cause.evidence else []
        if self.remedies:
            lines.append("**What to do:**")
            lines.append("\n".join(f"{place}. {_escaped(sentence(one))}" for place, one in enumerate(self.remedies, 1)))
        lines.append(f"**Where:** {_escaped(self.where) if self.where else 'no single place stands out'}")
        lines.append(f"**Since:** step {self.step if self.since is None else self.since}")
        return printable("\n\n".join(lines))


def _escaped(text: str) -> str:
    """Return a text with escaped underscores and asterisks outside of code, which Markdown reads as emphasis."""
    parts = text.split("`")
    parts[::2] = [part.replace("_", "\\_").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
