"""TensorBoard, read back from the files that it reads."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util.tensor_util import make_ndarray

from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.tensorboard import TensorBoardAdapter
from lightning_gradexplode.loggers.tensorboard_layout import CATEGORY, USUAL_UPDATE_RATIO
from lightning_gradexplode.records import Report, StepRecord
from lightning_gradexplode.report.heatmap import png
from tests.loggers.steps import HOPELESS, TENSORS, finding, record_of

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish every kind of gradient through Lightning's logger, and return the run's folder."""
    logger = TensorBoardLogger(tmp_path_factory.mktemp("tensorboard"), name="run", version=0)
    board = LoggerCollection([logger])
    board.log_batch([record_of({**TENSORS, **HOPELESS}, step=3)], [(True,) * 12])
    board.log_batch([record_of(TENSORS, step=4)], [(True,) * 10])
    board.finding(finding(where="rnn.weight_hh_l0"), "clip the gradients")
    board.report(Report(41, Path("/runs/1"), diagnosis="**What:** too much", picture=png(PICTURE)))
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
    linear = {tag for tag in tags if "/gradient/" in tag}
    assert linear == {f"gradexplode/gradient/{name}" for name in TENSORS}
    logarithmic = {tag.removeprefix("gradexplode/log10_gradient/") for tag in set(tags) - linear}
    assert logarithmic == set(TENSORS) - {"zeros"}


@pytest.mark.parametrize("name", sorted(set(TENSORS) - {"zeros"}))
def test_logarithmic_histograms_count_every_element_that_is_not_zero(events: EventAccumulator, name: str) -> None:
    """Their limits are decimal logarithms, from 1e-30 to 1e30 within less than a hundred, and ascending."""
    event, _ = events.Histograms(f"gradexplode/log10_gradient/{name}")
    values = TENSORS[name].double()
    values = values[torch.isfinite(values) & (values.abs() > 2.0**-126)]
    assert sum(event.histogram_value.bucket) == len(values)
    limits = event.histogram_value.bucket_limit
    assert limits == sorted(limits)
    logs = values.abs().clamp(max=2.0**128).log10()
    assert event.histogram_value.min <= logs.min().item() + 1e-9
    assert event.histogram_value.max >= logs.max().item() - 1e-9


def test_the_logarithm_of_the_norm_is_logged(events: EventAccumulator) -> None:
    """TensorBoard's axes are linear, so that an explosion would press all else to the bottom."""
    values = [(one.step, one.value) for one in events.Scalars("gradexplode/log10_grad_norm")]
    assert values == [(3, pytest.approx(math.log10(2.5))), (4, pytest.approx(math.log10(2.5)))]


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

    publisher = TensorBoardAdapter(SimpleNamespace(experiment=Writer()))
    publisher.histograms(record_of({**TENSORS, **HOPELESS}).histograms["gradient"], 3)
    assert calls.keys() == TENSORS.keys()
    for name, fields in calls.items():
        lefts, rights, counts = server[f"gradexplode/gradient/{name}"].T
        assert (fields["global_step"], fields["num"]) == (3, torch.isfinite(TENSORS[name]).sum())
        np.testing.assert_allclose([fields["min"], fields["max"]], [lefts[0], rights[-1]])
        np.testing.assert_allclose(fields["bucket_limits"], rights)
        np.testing.assert_allclose(fields["bucket_counts"], counts)


def text(events: EventAccumulator, tag: str) -> str:
    """Return the last text of a tag."""
    return str(make_ndarray(events.Tensors(f"{tag}/text_summary")[-1].tensor_proto)[0].decode())


def test_a_finding_is_a_text(events: EventAccumulator) -> None:
    """Each sign has a tag of its own; the name is code, so that markdown leaves its underscores alone."""
    shown = text(events, "gradexplode/finding/gradient-growth")
    for words in ("CRITICAL", "`rnn.weight_hh_l0`", "| 41 | 123.2 | 20.5 |", "clip the gradients"):
        assert words in shown


def test_a_report_is_a_text_and_a_picture(events: EventAccumulator) -> None:
    """Where its page is, without the path before it, and the heat map pixel by pixel."""
    assert "`1`" in text(events, "gradexplode/report")
    assert str(Path.home()) not in text(events, "gradexplode/report")
    (image,) = events.Images("gradexplode/gradient_norms")
    assert image.step == 41
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), PICTURE)


def layout(folder: Path) -> Layout:
    """Read the layout that TensorBoard's page of custom scalars takes: the last one of the run."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return Layout.FromString(make_ndarray(accumulator.Tensors("custom_scalars__config__")[-1].tensor_proto).item())


def test_charts_of_custom_scalars(folder: Path) -> None:
    """Norms around the clip are in one chart; each chart's tags are logged ones."""
    (category,) = layout(folder).category
    assert category.title == CATEGORY
    logarithm, norms, ratio, severity = category.chart
    assert logarithm.multiline.tag == [".*gradexplode/log10_grad_norm$"]
    assert [tag.rpartition("/")[2] for tag in norms.multiline.tag] == ["grad_norm$", "grad_norm_clipped$", "clip_val$"]
    (series,) = ratio.margin.series
    assert series.value == "gradexplode/update_ratio"
    assert {series.lower, series.upper} == set(USUAL_UPDATE_RATIO)
    assert "severity" in severity.multiline.tag[0]


def charts_of_a_user() -> dict[str, dict[str, list[Any]]]:
    """Lay out a chart as users do."""
    return {"Mine": {"losses": ["Multiline", ["train/loss", "val/loss"]]}}


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
def test_a_users_own_layout_stays(tmp_path: Path, first: bool) -> None:
    """Charts that a user laid out before the first log are kept in front of ours; later ones stand as they are."""
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    if first:
        logger.experiment.add_custom_scalars(charts_of_a_user())
    LoggerCollection([logger]).log_batch([StepRecord(step=0, grad_norm=1.0)], [()])
    if not first:
        logger.experiment.add_custom_scalars(charts_of_a_user())
    logger.finalize("success")
    titles = [category.title for category in layout(Path(logger.log_dir)).category]
    assert titles == (["Mine", CATEGORY] if first else ["Mine"])


def test_a_resumed_run_writes_its_layout_once(tmp_path: Path) -> None:
    """Where our charts are in the run's folder already, nothing replaces a layout that followed them."""
    for _ in range(2):
        logger = TensorBoardLogger(tmp_path, name="run", version=0)
        LoggerCollection([logger]).log_batch([StepRecord(step=0, grad_norm=1.0)], [()])
        logger.finalize("success")
    files = list(Path(logger.log_dir).glob("*tfevents*"))
    assert sum(path.read_bytes().count(b"custom_scalars__config__") for path in files) == 1


def test_the_band_comes_with_the_update_ratio_only(tmp_path: Path) -> None:
    """The band's borders are logged at the steps at which the ratio is, and in TensorBoard alone."""
    logger = TensorBoardLogger(tmp_path, name="run", version=0)
    board = LoggerCollection([logger])
    board.log_batch([StepRecord(step=0, grad_norm=1.0)], [()])
    board.log_batch([StepRecord(step=1, grad_norm=1.0, update_ratio=0.001)], [()])
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {name: [(one.step, one.value) for one in events.Scalars(name)] for name in USUAL_UPDATE_RATIO} == {
        name: [(1, pytest.approx(value))] for name, value in USUAL_UPDATE_RATIO.items()
    }


def test_histograms_of_a_step_are_one_event(folder: Path) -> None:
    """The writer queues ten events; a step's histograms take one place of them, however many they are."""
    (file,) = folder.glob("*tfevents*")
    kinds = [[value.tag for value in event.summary.value] for event in EventFileLoader(str(file)).Load()]
    assert len([tags for tags in kinds if any("/gradient/" in tag for tag in tags)]) == 2
