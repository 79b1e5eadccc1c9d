"""Messages in the terminal, by Python's logger ``lightning_gradexplode``, which users can redirect or silence.

If logging is not configured, messages are written to standard error, above the progress bar if there is one.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, TextIO

from lightning_gradexplode.loggers.panel import Panel, in_one_line, incident_panel
from lightning_gradexplode.records import Attempt, Diagnosis, Finding, Report, Severity
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.repeats import Repeats
from lightning_gradexplode.records.summary import headline

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}


MAX_SIGNS = 3
"""Number of signs that the line about the later findings of an incident names."""


class Console:
    """Logs each incident in a few lines: one per sign that warns, one panel, and one line for all later findings.

    Of the incidents of the same sign, the first three of a run are logged, then the 10th, the 100th and so on.
    """

    def __init__(self) -> None:
        self._panel_step: int | None = None  # the step that the incident's panel describes, None before it
        self._diagnosed: bool | None = None  # whether the incident's panel was logged, None before it
        self._signs: Counter[str] = Counter()
        self._first_steps: dict[str, int] = {}
        self._repeats = Repeats()

    def finding(self, finding: Finding, advice: str = "") -> None:
        """Log a finding in one line.

        The first critical finding begins the panel, and those of the same step after it are part of it. Later ones, and
        further findings of the same sign, are counted for `end_incident`.
        """
        if finding.severity is Severity.CRITICAL and self._panel_step is None:
            self._start(finding.step)
        if finding.step == self._panel_step:
            return
        is_counted = self._panel_step is not None or self._signs[finding.sign] > 0
        self._signs[finding.sign] += 1
        if is_counted:
            self._first_steps.setdefault(finding.sign, finding.step)
        elif self._repeats.is_due(kind := f"{finding.sign} {finding.severity}"):
            advised = f" -> {advice.partition(';')[0]}" if advice else ""
            log(_LEVELS[finding.severity], f"gradexplode {finding}{advised}{self._repeats.note(kind)}")

    def incident(
        self,
        diagnosis: Diagnosis,
        findings: Sequence[Finding],
        attempts: Sequence[Attempt] = (),
        responses: Sequence[str] = (),
        report: Report | None = None,
    ) -> None:
        """Log an incident after the responses have acted, a later diagnosis of the same incident in one line.

        The arguments are those of `lightning_gradexplode.loggers.panel.incident_panel`.
        """
        if self._diagnosed is not None:
            if self._diagnosed:
                log(logging.ERROR, f"gradexplode: {in_one_line(diagnosis, ', after more steps')}")
            return
        finding = headline(findings)
        kind = finding.sign if finding else ""
        self._diagnosed = self._repeats.is_due(kind)
        if self._diagnosed:
            panel = incident_panel(diagnosis, findings, attempts, responses, report)
            panel = replace(panel, title=panel.title + self._repeats.note(kind))
            log(logging.ERROR, str(panel), panel)

    def explain(self, diagnosis: Diagnosis) -> None:
        """Log the diagnosis of an incident in one line."""
        if self._repeats.is_due("cause"):
            log(logging.WARNING, f"gradexplode: {in_one_line(diagnosis)}")

    def end_incident(self) -> None:
        """Log the counted findings in one line. Called when an incident ends, or the run."""
        if self._first_steps:
            known = 1 if self._panel_step is None else 0  # the first one has its own line
            counts = [(sign, self._signs[sign] - known, step) for sign, step in self._first_steps.items()]
            later = [
                f"{sign} {f'{count} times, first ' if count > 1 else ''}at step {at}" for sign, count, at in counts
            ]
            if len(later) > MAX_SIGNS:
                rest = len(later) - MAX_SIGNS
                later[MAX_SIGNS:] = [f"and {rest} more sign{'s' if rest > 1 else ''} up to step {counts[-1][2]}"]
            if self._repeats.is_due("later"):
                log(logging.WARNING, f"gradexplode: further findings of the incident: {', '.join(later)}")
        self._start(None)

    def _start(self, panel_step: int | None) -> None:
        self._panel_step = panel_step
        self._signs.clear()
        self._first_steps.clear()
        if panel_step is None:
            self._diagnosed = None


def log(level: int, message: str, panel: Panel | None = None) -> None:
    """Log a message without damaging progress bars.

    Args:
        level: A level of `logging`.
        message: The message.
        panel: A panel that is drawn instead on a terminal.
    """
    with _beside_progress_bars():
        logger.log(level, "%s", _Message(message, panel))


def log_to_terminal() -> Callable[[], None]:
    """Write the package's messages to standard error if logging is not configured.

    Returns:
        A function that stops it.
    """
    if logger.hasHandlers():
        return lambda: None
    handler = TerminalHandler(logging.WARNING if logger.logger.level == logging.NOTSET else logging.NOTSET)
    logger.logger.addHandler(handler)
    return lambda: logger.logger.removeHandler(handler)


class _Message(str):
    """A message, and the panel that is drawn instead on a terminal. Other handlers format the text."""

    panel: Panel | None

    def __new__(cls, text: str, panel: Panel | None) -> _Message:
        message = super().__new__(cls, text)
        message.panel = panel
        return message


class TerminalHandler(logging.Handler):
    """Writes to the current standard error, also if it is replaced later."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or its panel if it has one and standard error is a terminal."""
        try:
            stream = sys.stderr
            panel = next((one.panel for one in record.args or () if isinstance(one, _Message)), None)
            drawn = panel.drawn(shutil.get_terminal_size().columns) if panel and _is_terminal(stream) else None
            text = drawn if drawn and _encodable(drawn, stream) == drawn else self.format(record)
            with _cleared_progress_bars():
                stream.write(_encodable(text, stream).rstrip("\n") + "\n")
                stream.flush()
        except Exception:
            with suppress(Exception):  # standard error may be closed
                self.handleError(record)


def _encodable(text: str, stream: TextIO) -> str:
    """Return a text that a stream can encode, with question marks in place of other characters."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("\u2026", "...").encode(encoding, "replace").decode(encoding)
    return text


def _cleared_progress_bars() -> AbstractContextManager[None]:
    """Remove the progress bars of tqdm while a message is written."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    cleared: AbstractContextManager[None] = nullcontext() if tqdm is None else tqdm.external_write_mode(file=sys.stderr)
    return cleared


@contextmanager
def _beside_progress_bars() -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(log_to_terminal())
        stack.enter_context(_cleared_progress_bars())
        # rich prints above its live display only what is written to the streams by which it has replaced sys.stdout and
        # sys.stderr.
        proxies = {id(getattr(one, "rich_proxied_file", one)): one for one in (sys.stdout, sys.stderr)}
        for handler in _stream_handlers():
            proxy = proxies.get(id(handler.stream))
            if proxy is not None and proxy is not handler.stream:
                stack.callback(handler.setStream, handler.stream)
                handler.setStream(proxy)
        yield


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    one: logging.Logger | None = logger.logger
    while one is not None:
        yield from (handler for handler in one.handlers if isinstance(handler, logging.StreamHandler))
        one = one.parent if one.propagate else None


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"
