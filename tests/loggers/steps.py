"""Records to publish."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import torch
from torch import Tensor

from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.records import Finding, Report, Severity, StepRecord

TENSORS: dict[str, Tensor] = {
    "normal": torch.randn(1000, generator=torch.Generator().manual_seed(0)),
    "zeros": torch.zeros(10),
    "one value": torch.full((7,), 0.3),
    "one element": torch.tensor([-2.0]),
    "with NaN": torch.tensor([1.0, math.nan, -3.0, math.inf, 2.0]),
    "tiny": torch.tensor([1e-30, -1e-30, 2e-30]),
    "huge": torch.tensor([1e30, -1e30, 3.4e38]),
    "tiny and huge": torch.tensor([1e-30, 1e30, 0.0, -1.0]),
    "above float32": torch.tensor([1e300, 1.0], dtype=torch.float64),
    "every size": torch.cat([torch.logspace(-37, 37, 3000), -torch.logspace(-37, 37, 3000)]),
}
"""Gradients with a finite element, by what is special about them."""

HOPELESS: dict[str, Tensor] = {
    "all NaN": torch.full((3,), math.nan),
    "empty": torch.zeros(0),
}
"""Gradients that no histogram can be shown of."""


def record_of(tensors: dict[str, Tensor], step: int = 3) -> StepRecord:
    """Build a step with a histogram of each tensor."""
    return StepRecord(
        step=step,
        parameters=tuple(tensors),
        grad_norm=2.5,
        nonfinite_count=4,
        severity=2,
        histograms={"gradient": {name: measure_histogram(tensor) for name, tensor in tensors.items()}},
    )


def finding(severity: Severity = Severity.CRITICAL, where: str | None = "layer.weight", limit: float = 20.5) -> Finding:
    """Build a finding."""
    return Finding(41, "gradient-growth", severity, where, 123.25, limit, "the gradient norm is 123.25")


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A picture of one pixel."""


def report_in(folder: Path) -> Report:
    """Write a small report."""
    folder.mkdir()
    (folder / "findings.jsonl").write_text("{}\n")
    page = folder / "index.html"
    page.write_text("<html><body>the run exploded</body></html>")
    return Report(41, folder, page, "**What:** the run exploded", PNG)
