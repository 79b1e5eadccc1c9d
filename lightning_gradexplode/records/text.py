"""Text that is safe in a terminal, in a file and in JSON."""

from __future__ import annotations


def plain_text(text: str) -> str:
    r"""Return a text in one line: characters that cannot be printed (control characters, surrogates) become spaces.

    Example:
        >>> plain_text("layer\x1b[31m\nweight")
        'layer [31m weight'
    """
    return "".join(character if character.isprintable() else " " for character in text)
