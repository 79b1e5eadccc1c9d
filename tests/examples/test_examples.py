"""The examples do what their texts say, on real data, in a folder of their own."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    """Import an example, which belongs to no package, from its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def own_world(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Run in a folder, and put back afterwards what an example's main() changes in the process."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder))
        try:
            yield patch
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def events(folder: Path) -> EventAccumulator:
    """Read all that TensorBoard would show of a run."""
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def scalars(accumulator: EventAccumulator, tag: str) -> dict[int, float]:
    """Return a scalar's values by step."""
    return {event.step: event.value for event in accumulator.Scalars(tag)}


class Sunspots:
    """One run of the first example: what main() gave and printed, and the logs of both trainings."""

    def __init__(self, folder: Path) -> None:
        printed = io.StringIO()
        with own_world(folder), redirect_stdout(printed):
            self.lost, self.rescued = load("sunspots_rnn").main()
        self.printed = printed.getvalue()
        self.lost_events = events(folder / "logs/sunspots/without_clipping")
        self.rescued_events = events(folder / "logs/sunspots/with_clip_auto")


@pytest.fixture(scope="module")
def sunspots(tmp_path_factory: pytest.TempPathFactory) -> Sunspots:
    return Sunspots(tmp_path_factory.mktemp("sunspots"))


def test_sunspots_alarm_is_not_later_than_loss(sunspots: Sunspots) -> None:
    """Without clipping the run is really lost, and the alarm comes at that step or before it."""
    assert sunspots.lost.probe.lost_at is not None
    assert sunspots.lost.alarm_at is not None
    assert sunspots.lost.alarm_at <= sunspots.lost.probe.lost_at
    assert not sunspots.lost.probe.losses[-1] <= sunspots.lost.probe.losses[0]


def test_sunspots_run_is_calm_before_it_explodes(sunspots: Sunspots) -> None:
    """The explosion is no flaw of the start: the network had learned for thirty steps and more before the alarm."""
    losses, alarm = sunspots.lost.probe.losses, sunspots.lost.alarm_at
    assert alarm is not None
    assert alarm > 30
    assert max(losses[1:30]) < losses[0]


def test_sunspots_are_rescued_by_clipping(sunspots: Sunspots) -> None:
    """With clip="auto" nothing critical is found, the loss ends low, and forecasts beat "the same as last year"."""
    rescued = sunspots.rescued
    assert rescued.alarm_at is None
    assert rescued.probe.lost_at is None
    assert fmean(rescued.probe.losses[-5:]) < 0.2 * rescued.probe.losses[0]
    numbers = sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()
    as_last_year = float(np.sqrt(np.mean(np.square(numbers[-50:] - numbers[-51:-1]))))
    assert rescued.error < 0.8 * as_last_year


def test_both_trainings_of_sunspots_start_alike(sunspots: Sunspots) -> None:
    """Both trainings start from the same weights and the same first batch."""
    assert sunspots.lost.probe.losses[0] == sunspots.rescued.probe.losses[0]


def test_sunspots_curve_shows_the_explosion(sunspots: Sunspots) -> None:
    """The gradient norm in TensorBoard has the peak that the probe saw, far above its first value."""
    norms = list(scalars(sunspots.lost_events, "gradexplode/grad_norm").values())
    peak = max(norm for norm in norms if math.isfinite(norm))
    assert peak == pytest.approx(sunspots.lost.probe.largest_norm, rel=1e-5)
    assert peak > 1e10 * norms[0]


def test_clipping_of_sunspots_binds_in_the_logs(sunspots: Sunspots) -> None:
    """The logs of the rescued run show norms above the threshold before clipping, and none after it."""
    before = scalars(sunspots.rescued_events, "gradexplode/grad_norm")
    after = scalars(sunspots.rescued_events, "gradexplode/grad_norm_clipped")
    limits = scalars(sunspots.rescued_events, "gradexplode/clip_val")
    assert any(before[step] > limits[step] for step in limits)
    assert all(after[step] <= limits[step] * 1.0001 for step in limits)


@pytest.mark.parametrize("quantity", ["gradient", "update", "weight"])
def test_sunspots_histograms_hold_every_element(sunspots: Sunspots, quantity: str) -> None:
    """Each histogram in TensorBoard counts all elements of its parameter, between ascending borders."""
    sizes = {"rnn.weight_ih_l0": 32, "rnn.weight_hh_l0": 32 * 32, "head.weight": 32, "head.bias": 1}
    for parameter, size in sizes.items():
        shown = sunspots.rescued_events.Histograms(f"gradexplode/{quantity}/{parameter}")
        assert len(shown) >= 40
        for event in shown:
            value = event.histogram_value
            assert sum(value.bucket) == value.num == size
            assert value.min < value.bucket_limit[0]
            assert np.all(np.diff(value.bucket_limit) > 0)


def test_sunspots_say_where_to_look(sunspots: Sunspots) -> None:
    """The terminal shows both steps, both final losses, the folder of the logs and the command that opens them."""
    lines = sunspots.printed.splitlines()
    alarm = next(line for line in lines if "alarm" in line)
    assert alarm.split()[-2:] == [str(sunspots.lost.alarm_at), "never"]
    final = next(line for line in lines if "final loss" in line)
    assert final.split()[-1] == f"{fmean(sunspots.rescued.probe.losses[-5:]):.3f}"
    assert any(line.startswith("Logs: ") for line in lines)
    assert "tensorboard --logdir logs/sunspots" in sunspots.printed


def read_wandb(file: Path) -> list[dict[str, Any]]:
    """Read W&B's offline file with W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


class Digits:
    """One run of the second example: what main() gave, and what both loggers have written."""

    def __init__(self, folder: Path) -> None:
        with own_world(folder), redirect_stdout(io.StringIO()):
            self.trainer, self.monitor = load("digits_mlp").main()
        self.events = events(folder / "logs/digits/tensorboard")
        (file,) = folder.glob("logs/digits/wandb/offline-run-*/*.wandb")
        self.wandb = read_wandb(file)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return Digits(tmp_path_factory.mktemp("digits"))


def test_the_training_on_digits_is_stopped(digits: Digits) -> None:
    """The explosion is found, and the training ends there, long before its eight epochs of 29 steps."""
    assert digits.monitor.exploded
    assert digits.trainer.global_step < 8 * 29 / 2


def test_digits_gradient_grows_towards_the_first_layer(digits: Digits) -> None:
    """At the first step the error gradient of the first layer is more than ten times that of the last one."""
    first = scalars(digits.events, "gradexplode/grad_norm/hidden.0.weight")
    last = scalars(digits.events, "gradexplode/grad_norm/hidden.38.weight")
    assert first[0] > 10 * last[0]


def test_digits_have_histograms_in_tensorboard(digits: Digits) -> None:
    """Every layer's weight has gradient histograms; what `include` leaves out has none."""
    tags = digits.events.Tags()["histograms"]
    assert {f"gradexplode/gradient/hidden.{2 * layer}.weight" for layer in range(20)} <= set(tags)
    assert not [tag for tag in tags if tag.endswith(".bias")]


def test_digits_are_the_same_in_both_loggers(digits: Digits) -> None:
    """W&B's offline file holds the same gradient norms at the same steps as TensorBoard's, and histograms too."""
    name = "gradexplode/grad_norm"
    rows = [entry["history"]["item"] for entry in digits.wandb if entry["type"] == "history"]
    in_wandb = {row["trainer/global_step"]: row[name] for row in rows if name in row}
    assert in_wandb == pytest.approx(scalars(digits.events, name), rel=1e-6)
    counts = "gradexplode/gradient/hidden.0.weight.values"
    shown = [sum(row[counts]) for row in rows if counts in row]
    assert shown
    assert set(shown) == {64 * 64}


def test_digits_send_an_alert(digits: Digits) -> None:
    """The critical finding is an alert of level ERROR in W&B, which an account would get as a message."""
    alerts = [entry["alert"] for entry in digits.wandb if entry["type"] == "alert"]
    critical = {finding.sign for finding in digits.monitor.findings if finding.severity.name == "CRITICAL"}
    titles = [alert["title"] for alert in alerts if alert["level"] == "ERROR"]
    assert titles
    assert len(titles) == 1
    assert any(sign in titles[0] for sign in critical)
