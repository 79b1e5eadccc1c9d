"""An incident as a few lines of text for a terminal."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_gradexplode.records import Attempt, Cause, Diagnosis, Finding, Report
from lightning_gradexplode.records.summary import cause_title, done, place, remedies, since, title
from lightning_gradexplode.records.text import plain_text, without_markup

WIDTH = 100
"""Largest number of columns of a panel."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Sections with a heading and a limited number of lines.

    Args:
        title: The first line.
        sections: Heading, text and largest number of lines of each section; 0 for a text that stays in one line.
    """

    title: str
    sections: tuple[tuple[str, str, int], ...]

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {heading} {line}" for heading, line in self.lines(WIDTH - 2))])

    def lines(self, width: int) -> Iterator[tuple[str, str]]:
        """Return the lines below the title: the heading, padded or blank, and the text.

        Args:
            width: Columns of a line.
        """
        indent = max((len(heading) for heading, _, _ in self.sections), default=0) + 1
        for heading, text, most in self.sections:
            wrapped = textwrap.wrap(
                text,
                width=max(width - indent - 1, 20),
                max_lines=most or None,
                placeholder=" \u2026",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for index, line in enumerate(wrapped if most else [text]):
                yield f"{heading + ':' if index == 0 else '':{indent}}", line

    def drawn(self, columns: int) -> str | None:
        """Return the panel in color, with a bar on its left; None if ``rich`` is not installed.

        Args:
            columns: Columns of the terminal.
        """
        try:
            from rich.console import Console
            from rich.text import Text
        except ImportError:
            return None
        text = Text.assemble(("\u258c ", "red"), (self.title, "bold red"))
        for heading, line in self.lines(min(columns, WIDTH) - 2):
            text.append_text(Text.assemble(("\n\u258c ", "red"), (heading, "bold"), " ", line))
        file = io.StringIO()
        Console(file=file, force_terminal=True, width=columns).print(text, soft_wrap=True, highlight=False)
        return file.getvalue()


def incident_panel(
    diagnosis: Diagnosis,
    findings: Sequence[Finding],
    attempts: Sequence[Attempt] = (),
    responses: Sequence[str] = (),
    report: Report | None = None,
) -> Panel:
    """Return the panel of an incident: what happened, why, what to do, where, what was done, and the report.

    Args:
        diagnosis: Its diagnosis.
        findings: Its findings.
        attempts: The actions of the responses.
        responses: Names of the responses that act.
        report: The report, None if none was written.
    """
    sections = [
        ("What", diagnosis.what, 2),
        ("Why", _why(diagnosis.causes), 2),
        ("Do", " ".join(remedies(diagnosis)), 3),
        ("Where", f"{place(diagnosis)}; since {since(diagnosis, findings)}", 1),
        ("Done", done(attempts, responses), 1),
        ("Report", str(report.page or report.folder) if report else "", 0),
    ]
    plain = (without_markup(text) if most else plain_text(text) for _, text, most in sections)
    kept = tuple((heading, text, most) for (heading, _, most), text in zip(sections, plain, strict=True) if text)
    return Panel(f"gradexplode {plain_text(title(diagnosis, findings))}", kept)


def in_one_line(diagnosis: Diagnosis, when: str = "") -> str:
    """Return a diagnosis in one line.

    Args:
        diagnosis: The diagnosis.
        when: What is said of the time at which it was made.
    """
    remedy = "".join(f" -> {one}" for one in remedies(diagnosis)[:1])
    text = f"diagnosis of step {diagnosis.step}{when}: {_why(diagnosis.causes)}{remedy}"
    return textwrap.shorten(without_markup(text), 3 * WIDTH, placeholder=" \u2026")


def _why(causes: Sequence[Cause]) -> str:
    if not causes:
        return ""
    first, *others = causes
    evidence = f": {first.evidence[0]}" if first.evidence else ""
    less_likely = [cause_title(other) for other in others if not other.is_faint]
    return "; or ".join([f"{cause_title(first)}{evidence}".removesuffix("." if less_likely else ""), *less_likely])
