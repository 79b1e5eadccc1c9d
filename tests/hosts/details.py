"""What is recorded of gradients that a loop clips, against numpy on copies that were made before the clipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from torch import nn

from lightning_gradexplode.records import BUCKET_EDGES, StepRecord


def copies(model: nn.Module, scale: float = 1.0) -> dict[str, Any]:
    """Return the gradients by the name of their parameter, flat in float64, divided by a gradient scaler's scale."""
    named = [(name, one.grad) for name, one in model.named_parameters() if one.grad is not None]
    return {name: one.detach().double().flatten().numpy() / scale for name, one in named}


def check_details(record: StepRecord | None, truth: Mapping[str, Any]) -> None:
    """Compare norm, largest element, share of elements above one and histograms of a step with its gradients."""
    assert record is not None
    together = np.abs(np.concatenate(list(truth.values())))
    assert record.grad_norm == pytest.approx(np.linalg.norm(together), rel=1e-6)
    assert record.grad_max == pytest.approx(together.max(), rel=1e-9)
    shares = [float((np.abs(truth[name]) >= 1.0).mean()) for name in record.parameters]
    assert record.per_parameter["share_above_one"].tolist() == pytest.approx(shares)
    histograms = record.histograms["gradient"]
    assert set(histograms) == set(record.parameters)
    for name, histogram in histograms.items():
        negative = truth[name] < 0  # a value on a border belongs to the bucket that lies farther from zero
        counts = np.histogram(truth[name][~negative], BUCKET_EDGES)[0]
        counts = counts + np.histogram(-truth[name][negative], BUCKET_EDGES)[0][::-1]
        assert histogram.counts.tolist() == counts.tolist(), name
