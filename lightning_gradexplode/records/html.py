"""Records as HTML, for notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape


def with_code(text: str) -> str:
    """Return a text as HTML. Text between backticks becomes code, between three backticks a block of code.

    Example:
        >>> with_code("Use `clip=1.0` & wait")
        'Use <code>clip=1.0</code> &amp; wait'
    """
    parts = re.split(r"```(?:\w*\n)?(.*?)```|`([^`]+)`", text, flags=re.DOTALL)
    html = []
    for index in range(0, len(parts), 3):
        html.append(escape(parts[index]))
        if index + 2 < len(parts):
            block, inline = parts[index + 1], parts[index + 2]
            code = f"<code>{escape(inline if block is None else block.strip())}</code>"
            html.append(code if block is None else f"<pre>{code}</pre>")
    return "".join(html)


def frame(page: str) -> str:
    """Return an iframe that contains a page, so that a notebook needs no further file."""
    return f'<iframe srcdoc="{escape(page)}" style="width:100%;height:900px;border:0"></iframe>'


def table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of two columns below a title; the text may contain code between backticks."""
    cells = "".join(
        f'<tr><th style="text-align:left;vertical-align:top">{escape(name)}</th>'
        f'<td style="text-align:left">{with_code(text)}</td></tr>'
        for name, text in rows
    )
    return f"<div><strong>{escape(title)}</strong><table>{cells}</table></div>"
