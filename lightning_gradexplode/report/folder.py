"""The folder of a run's report. No run writes into the folder of another one."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_gradexplode.records.html import frame
from lightning_gradexplode.records.text import plain_text

# Before Python 3.12 only the path of the operating system can be subclassed.
if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())

CLAIM = "findings.jsonl"
"""The file that reserves a folder for a run; it is written first."""

LATER_RUNS = "<!-- later runs -->"
"""Place of the notice about later runs in a page."""


def base_folder(
    report: bool | str | Path, own_folder: Path | None, save_folder: Path, run_id: str | None, began: datetime
) -> Path | None:
    """Return the folder for a run's reports.

    Args:
        report: The monitor's argument: a path, True or ``"always"`` for the default, False for none.
        own_folder: The run's own folder, None if the logger does not create one per run.
        save_folder: The folder shared by several runs.
        run_id: Identifier of the run in its logger, None if it has none.
        began: Start of the run, in UTC.

    Returns:
        The folder; None if `report` is False.
    """
    if report is False:
        return None
    if report is not True and report != "always":
        return Path(report)
    if own_folder is not None:
        return own_folder / "gradexplode"
    return save_folder / "gradexplode" / (run_id or began.strftime("%Y-%m-%d_%H-%M-%S"))


class RunFolder(_Path):
    """The path of a run's report, which a notebook displays as the page."""

    def _repr_html_(self) -> str:
        page = self / "index.html"
        return frame(page.read_text(encoding="utf-8")) if page.exists() else escape(str(self))


class ReportFolder:
    """The folder of one run's report: the base folder itself, or ``run-2``, ``run-3`` and so on inside.

    Nothing is written before `claim`, so that a run without a report creates no folder.

    Args:
        base: The folder from `base_folder`.
        run_id: Identifier of the run; a run that is resumed with the same identifier continues in its folder.
    """

    def __init__(self, base: Path, run_id: str) -> None:
        self._base = base
        self._run_id = run_id
        self._claimed: Path | None = None

    @property
    def path(self) -> Path | None:
        """The run's folder; None before `claim`."""
        return self._claimed

    def claim(self) -> Path:
        """Return the run's folder, which is created and reserved at the first call.

        Raises:
            OSError: No folder can be created.
        """
        number = 1
        while self._claimed is None:
            folder = self._base if number == 1 else self._base / f"run-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                (folder / CLAIM).touch(exist_ok=False)
                self._claimed = RunFolder(folder)
            if self._claimed is None and owner(folder) == self._run_id:
                self._claimed = RunFolder(folder)
            number += 1
        return self._claimed

    def announce(self, began: datetime) -> None:
        """Add a notice to the page of an earlier run in the same folder that a later run has begun.

        Without it, that page could be taken for that of a later run without an explosion.

        Raises:
            OSError: The page cannot be written.
        """
        page = self._base / "index.html"
        if not page.exists() or owner(self._base) == self._run_id:
            return
        text = page.read_text(encoding="utf-8")
        notice = (
            f'<p class="notice">This page is about an earlier run. A later one began on {began:%Y-%m-%d %H:%M} UTC; '
            "its report, if it has one, is in a folder run-2, run-3, ... beside this page.</p>"
        )
        head, found, tail = text.partition(LATER_RUNS)
        if found and not tail.lstrip().startswith('<p class="notice">This page is about'):
            write_whole(page, f"{head}{LATER_RUNS}{notice}{tail}".encode())


def owner(folder: Path) -> str | None:
    """Return the identifier of the run of a folder's report, None if it is unknown."""
    try:
        return str(json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))["run"]["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def public_name(name: object) -> str:
    """Return the name of a run without a path."""
    return plain_text(str(name)).replace("\\", "/").rstrip("/").rpartition("/")[2] or "run"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically. A failure leaves the old file and no partial one.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
