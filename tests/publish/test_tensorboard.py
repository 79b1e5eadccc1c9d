"""TensorBoard, read back from the files that it reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from lightning_gradexplode.publish import Board
from lightning_gradexplode.publish.tensorboard import TensorBoardPublisher
from tests.publish.steps import HOPELESS, TENSORS, record_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish every kind of gradient through Lightning's logger, and give the run's folder."""
    logger = TensorBoardLogger(tmp_path_factory.mktemp("tensorboard"), name="run", version=0)
    board = Board([logger])
    board.record(record_of({**TENSORS, **HOPELESS}, step=3), (True,) * 12, every_parameter=False)
    board.record(record_of(TENSORS, step=4), (True,) * 10, every_parameter=False)
    logger.finalize("success")
    return Path(logger.log_dir)


@pytest.fixture(scope="module")
def events(folder: Path) -> EventAccumulator:
    """Read the run as users' programs do."""
    accumulator = EventAccumulator(str(folder), size_guidance={HISTOGRAMS: 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def server(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Read the run's histograms as TensorBoard's server does: left border, right border and count of each bucket."""
    (file,) = folder.glob("events.*")
    values = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    return {value.tag: make_ndarray(value.tensor) for value in values if "gradient/" in value.tag}


@pytest.mark.parametrize("name", TENSORS)
def test_histograms_can_be_read_back(events: EventAccumulator, name: str) -> None:
    """Limits ascend, counts add up to the finite values, and the outer borders are finite and hold them all."""
    finite = TENSORS[name][torch.isfinite(TENSORS[name])].double()
    first, second = events.Histograms(f"gradexplode/gradient/{name}")
    assert (first.step, second.step) == (3, 4)
    shown = first.histogram_value
    limits, counts = np.array(shown.bucket_limit), np.array(shown.bucket)
    assert (np.diff(limits) > 0).all()
    assert shown.min < limits[0]
    assert counts.sum() == shown.num == finite.numel()
    assert np.isfinite([shown.min, shown.max, shown.sum, shown.sum_squares]).all()
    in_float32 = finite.clamp(-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
    assert shown.min <= float(in_float32.min()) <= float(in_float32.max()) <= shown.max == limits[-1]


def test_sum_is_right_within_a_bucket(events: EventAccumulator) -> None:
    """The sum and the sum of squares, worked out of the buckets, are near the true ones."""
    values = TENSORS["normal"].double()
    shown = events.Histograms("gradexplode/gradient/normal")[0].histogram_value
    assert shown.sum_squares == pytest.approx(float(values.square().sum()), rel=0.02)
    assert shown.sum == pytest.approx(float(values.sum()), abs=0.02 * float(values.abs().sum()))


def test_what_cannot_be_shown_is_left_out(events: EventAccumulator) -> None:
    """A gradient without a finite element has no histogram, and takes no other one with it."""
    tags = events.Tags()["histograms"]
    assert sorted(tags) == sorted(f"gradexplode/gradient/{name}" for name in TENSORS)


def test_scalars_can_be_read_back(events: EventAccumulator) -> None:
    """Scalars are there at their steps, under the names of the contract."""
    values = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert values["gradexplode/grad_norm"] == [(3, 2.5), (4, 2.5)]
    assert values["gradexplode/nonfinite_count"] == [(3, 4.0), (4, 4.0)]
    assert values["gradexplode/severity"] == [(3, 2.0), (4, 2.0)]
    assert "gradexplode/update_ratio" not in values


@pytest.mark.parametrize("name", TENSORS)
def test_the_server_draws_ascending_buckets(server: dict[str, NDArray[np.float32]], name: str) -> None:
    """What TensorBoard's server makes of a histogram, in float32, has no inverted bucket and loses no value."""
    lefts, rights, counts = server[f"gradexplode/gradient/{name}"].T
    assert (lefts < rights).all()
    assert (rights[:-1] == lefts[1:]).all()
    assert counts.sum() == torch.isfinite(TENSORS[name]).sum()


def test_a_writer_that_is_not_torchs_gets_histograms_one_by_one(server: dict[str, NDArray[np.float32]]) -> None:
    """tensorboardX and the like are handed the same numbers by their own method."""
    calls: dict[str, dict[str, Any]] = {}

    class Writer:
        def add_histogram_raw(self, tag: str, **fields: Any) -> None:
            calls[tag] = fields

    publisher = TensorBoardPublisher(SimpleNamespace(experiment=Writer()))
    publisher.histograms(record_of({**TENSORS, **HOPELESS}).histograms["gradient"], 3)
    assert calls.keys() == TENSORS.keys()
    for name, fields in calls.items():
        lefts, rights, counts = server[f"gradexplode/gradient/{name}"].T
        assert (fields["global_step"], fields["num"]) == (3, torch.isfinite(TENSORS[name]).sum())
        np.testing.assert_allclose([fields["min"], fields["max"]], [lefts[0], rights[-1]])
        np.testing.assert_allclose(fields["bucket_limits"], rights)
        np.testing.assert_allclose(fields["bucket_counts"], counts)
