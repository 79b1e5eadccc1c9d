"""Scalars as a file of comma-separated values, for runs without a logger."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


class CSVLog:
    """Appends scalars to ``gradexplode.csv``, one row for each, with the columns step, name and value.

    Args:
        folder: Where the file is written; it is created at the first write.
    """

    scalars_only = True
    """No message is logged that histograms are not supported."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gradexplode.csv"

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the scalars of a step.

        Raises:
            OSError: The file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", "name", "value"])
            writer.writerows([step, name, value] for name, value in metrics.items())
