"""What all tests share."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from lightning_gradexplode.diagnose.graph import values_are_readable
from lightning_gradexplode.engine.loss_graphs import LossGraphs

# Two shared cores are slow and uneven: a deadline for one example would only measure the neighbours.
settings.register_profile("gradexplode", max_examples=30, deadline=None)
settings.load_profile("gradexplode")

THIRD_PARTY_WARNINGS = (
    # Lightning, about the size of our test data and the machine the tests run on.
    "ignore:.*does not have many workers:UserWarning",
    "ignore:The number of training batches:UserWarning",
    "ignore:You defined a `validation_step`:UserWarning",
    "ignore:.*GPU available but not used.*",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
    # Lightning, about torch's pytree.
    "ignore:.*isinstance\\(treespec, LeafSpec\\).*",
    # torch 2.4, about itself, where a module is checkpointed.
    "ignore:.torch.cpu.amp.autocast.*is deprecated:FutureWarning",
    # torch, about Python 3.13.0, where it compiles.
    "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning",
    # torch, once a process, about sparse tensors of any kind.
    "ignore:Sparse .* tensor support is in beta state:UserWarning",
    "ignore:Sparse invariant checks are implicitly disabled:UserWarning",
)


SLOW = (
    "benchmarks",
    "examples",
    "runs",
    "diagnose/replay",
    "respond/test_kill_and_resume.py",
    "respond/test_whole_runs.py",
    "clip/test_guarded.py",
    "loggers/test_trackers.py",
    "loggers/test_wandb.py",
    "test_cli.py",
    "test_package.py",
)
"""Folders and files of tests that train whole networks, or compute steps again."""


def pytest_collection() -> None:
    """Do not collect garbage while modules are imported, whose many objects are all in use."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage again, without looking at what the modules hold."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the folder that they are in."""
    for item in items:
        place = item.path.as_posix().partition("/tests/")[2]
        if place.startswith("distributed/"):
            item.add_marker(pytest.mark.distributed)
        elif place.startswith("browser/"):
            item.add_marker(pytest.mark.browser)
        elif place.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Ignore warnings of other packages about themselves, or about the size of the test data."""
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _seeds_are_fixed() -> None:
    """Start each test with the same random numbers and one thread, which is fastest for tiny models."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logger_settings_are_restored() -> Iterator[None]:
    """Restore the level of the package's logger after each test."""
    ours = logging.getLogger("lightning_gradexplode")
    before = (ours.level, ours.propagate, ours.disabled)
    yield
    ours.setLevel(before[0])
    ours.propagate, ours.disabled = before[1], before[2]


@pytest.fixture(autouse=True)
def _replays_have_enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow replays more time than in a run, so that none is given up on a busy machine."""
    for name in ("replay", "experiments.experiments"):
        monkeypatch.setattr(f"lightning_gradexplode.diagnose.replay.{name}.SECONDS", 120.0)


@pytest.fixture(autouse=True)
def _no_line_about_the_version_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the line about graphs that torch 2.4 cannot show: tests count the lines of a run."""
    if not values_are_readable():
        monkeypatch.setattr(LossGraphs, "_why_without_values", lambda _: "")


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch count no compiled functions of earlier tests, within which operations are not observed."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is not None:
        monkeypatch.setattr(dynamo, "counters", {})
