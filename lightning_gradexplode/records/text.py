"""Conversion of text for terminals, files and JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence


def without_markup(text: str) -> str:
    r"""Return Markdown as one line of plain text: code without its backticks.

    Example:
        >>> without_markup("Clip:\n```python\nMonitor(clip='auto')\n```")
        "Clip: Monitor(clip='auto')"
    """
    return " ".join(plain_text(re.sub(r"```(?:\w*\n)?|`", "", text)).split())


def plain_text(text: str) -> str:
    r"""Return a text in one line, with spaces in place of unprintable characters (control characters, surrogates).

    Example:
        >>> plain_text("layer\x1b[31m\nweight")
        'layer [31m weight'
    """
    return "".join(character if character.isprintable() else " " for character in text)


def sentence(text: str) -> str:
    """Return a text that begins with a capital letter, and ends with a period or a block of code.

    Example:
        >>> sentence("lower the learning rate")
        'Lower the learning rate.'
    """
    text = text.strip()
    ended = text if text.endswith((".", "!", "?", "```")) else f"{text}."
    return ended[:1].upper() + ended[1:]


def step_count(count: float) -> str:
    """Return a rounded number of steps, at least one, as text.

    Example:
        >>> step_count(0.8), step_count(12.3)
        ('1 step', '12 steps')
    """
    number = max(round(count), 1)
    return f"{number} step{'' if number == 1 else 's'}"


def describe(error: BaseException) -> str:
    """Return class and text of an exception in one line of at most 300 characters; the class if ``str`` raises."""
    try:
        text = " ".join(plain_text(str(error)).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """Return class and first line of an exception's text, at most 100 characters of it."""
    try:
        line = plain_text(str(error).strip().partition("\n")[0])
    except Exception:
        line = ""
    text = line if len(line) <= 100 else f"{line[:100].rstrip()}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def few(names: Sequence[str]) -> str:
    """Return the first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def printable(text: str) -> str:
    r"""Return a text with escapes in place of unprintable characters other than line feeds.

    Different texts have different results, as names of metrics need.

    Example:
        >>> printable("layer\x1b.weight\ud800")
        'layer\\x1b.weight\\ud800'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode_escape").decode()
        for character in text
    )
