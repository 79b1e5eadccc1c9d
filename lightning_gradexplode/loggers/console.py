"""What the terminal says, through Python's logging, so that users can route or silence it.

Where nobody has set up logging, messages go to standard error, above the progress bar if there is one.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TextIO

from lightning_gradexplode.records import Finding, Severity

logger = logging.getLogger("lightning_gradexplode")

_LEVELS = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """A few sentences under headings.

    Args:
        title: What it is about.
        sentences: Headings and sentences.
    """

    title: str
    sentences: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        width = max((len(heading) for heading, _ in self.sentences), default=0) + 1
        lines = [
            textwrap.fill(
                sentence,
                width=100,
                initial_indent=f"  {heading + ':':{width}} ",
                subsequent_indent=" " * (width + 3),
                break_long_words=False,
                break_on_hyphens=False,
            )
            for heading, sentence in self.sentences
        ]
        return "\n".join([self.title, *lines])


def tell(finding: Finding, advice: str) -> None:
    """Log a finding: what happened where and when, and on a second line what to do about it."""
    say(_LEVELS[finding.severity], f"gradexplode {finding}\n  -> {advice}")


def tell_panel(panel: Panel) -> None:
    """Log an explosion once: in a panel on a terminal where ``rich`` is installed, else as plain lines."""
    say(logging.ERROR, str(panel), panel)


def tell_rest(signs: Mapping[str, int], began: int) -> None:
    """Log, in one line, what else was seen of an explosion that was told of.

    Args:
        signs: The step at which each sign was first seen.
        began: The step at which the explosion began.
    """
    named = ", ".join(f"{sign} (step {step})" for sign, step in signs.items())
    say(logging.WARNING, f"gradexplode: the explosion that began at step {began} went on: {named}")


def say(level: int, message: str, panel: Panel | None = None) -> None:
    """Log a message without spoiling the progress bars.

    Args:
        level: A level of `logging`.
        message: The message.
        panel: What is drawn instead of it on a terminal.
    """
    with _beside_the_bars():
        logger.log(level, "%s", message, extra={"panel": panel})


def listen() -> Callable[[], None]:
    """Write what anyone in the package says to standard error, where nobody has set up logging.

    Returns:
        What ends it.
    """
    if logger.hasHandlers():
        return lambda: None
    handler = TerminalHandler(logging.WARNING if logger.level == logging.NOTSET else logging.NOTSET)
    logger.addHandler(handler)
    return lambda: logger.removeHandler(handler)


class TerminalHandler(logging.Handler):
    """Writes to what standard error is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, drawn as a panel where it has one and standard error is a terminal."""
        try:
            stream = sys.stderr
            panel = getattr(record, "panel", None)
            drawn = _drawn(panel) if panel is not None and _is_terminal(stream) else None
            with _wiped_bars():
                stream.write((drawn or self.format(record)).rstrip("\n") + "\n")
                stream.flush()
        except Exception:
            self.handleError(record)


def _wiped_bars() -> AbstractContextManager[None]:
    """Wipe out the bars of tqdm for the time being, to be drawn again below."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    wiped: AbstractContextManager[None] = nullcontext() if tqdm is None else tqdm.external_write_mode(file=sys.stderr)
    return wiped


@contextmanager
def _beside_the_bars() -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(listen())
        stack.enter_context(_wiped_bars())
        # A live display of rich prints above itself what goes through its own standing-in streams only.
        proxies = {id(getattr(one, "rich_proxied_file", one)): one for one in (sys.stdout, sys.stderr)}
        for theirs in _stream_handlers():
            proxy = proxies.get(id(theirs.stream))
            if proxy is not None and proxy is not theirs.stream:
                stack.callback(theirs.setStream, theirs.stream)
                theirs.setStream(proxy)
        yield


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    one: logging.Logger | None = logger
    while one is not None:
        yield from (handler for handler in one.handlers if isinstance(handler, logging.StreamHandler))
        one = one.parent if one.propagate else None


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _drawn(panel: Panel) -> str | None:
    """Draw a panel; None where ``rich`` is not installed."""
    try:
        from rich.console import Console
        from rich.panel import Panel as Frame
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return None
    table = Table.grid(padding=(0, 1))
    for heading, sentence in panel.sentences:
        table.add_row(Text(heading, style="bold"), Text(sentence))
    drawn = io.StringIO()
    width = min(shutil.get_terminal_size().columns, 100)
    frame = Frame(table, title=Text(panel.title, style="bold"), title_align="left", border_style="red")
    Console(file=drawn, force_terminal=True, width=width).print(frame)
    return drawn.getvalue()
