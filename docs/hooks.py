"""Hooks of MkDocs: links to files outside of ``docs/`` become addresses of the repository."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\]\(\.\./(?!\.\.)([^)\s]+)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Return a page whose links to ``../<file>`` lead to that file in the repository."""
    return OUTSIDE.sub(lambda link: f"]({config['repo_url']}/blob/main/{link[1]})", markdown)
