"""What a run with many incidents writes: it does not grow with their number."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.records import Severity
from lightning_gradexplode.testing import PlainLoop

EVERY = 50
"""Number of steps from one log to the next."""


def train(steps: int, bad_every: int, folder: Path, response: str) -> tuple[TrainingRun, Counter[str]]:
    """Train with a NaN batch every so many steps, and return the run, and how often each tag was written."""
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)

    def loss(batch: Tensor) -> Tensor:
        error: Tensor = network(batch) - batch.sum(dim=1, keepdim=True)
        return error.square().mean()

    writer = SummaryWriter(str(folder))
    loop = PlainLoop(network, [optimizer], loss, [writer], folder, EVERY)
    run = TrainingRun(Arguments.checked(on_explosion=response), loop, {})
    bad = range(bad_every - 1, steps, bad_every)
    loop.train(run, (torch.randn(8, 4, generator=generator) * (float("nan") if n in bad else 1) for n in range(steps)))
    writer.close()
    (events,) = folder.glob("events*")
    return run, Counter(one.tag for event in EventFileLoader(str(events)).Load() for one in event.summary.value)


@pytest.mark.parametrize(
    ("steps", "bad_every"),
    [
        (700, 60),
        (600, 25),
        pytest.param(2_000, 25, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_written_does_not_grow_with_the_number_of_incidents(
    steps: int, bad_every: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside the logs at the usual interval there are those of a few incidents; the report has the last one."""
    with caplog.at_level(logging.DEBUG, "lightning_gradexplode"):
        run, written = train(steps, bad_every, tmp_path, "skip")
    incidents = steps // bad_every
    few = 3 + len(str(incidents))  # the first three, the 10th, the 100th, ...
    assert run.last is not None
    assert run.last.skipped_steps == incidents
    assert len(caplog.messages) <= 4 * few
    assert len(run.findings) <= 1000
    assert written["gradexplode/grad_norm"] <= steps // EVERY + 3 * few * 11
    texts = {tag: count for tag, count in written.items() if tag.endswith("text_summary")}
    assert texts
    assert max(texts.values()) <= 2 * few
    assert run.report_folder is not None
    latest = max(finding.step for finding in run.findings if finding.severity is Severity.CRITICAL)
    assert f'"step": {latest}' in (run.report_folder / "findings.jsonl").read_text()
