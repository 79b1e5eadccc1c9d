"""Runs of several real processes: the numbers of the unsharded run, agreed findings, and no deadlock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORKER = Path(__file__).parent / "worker.py"
STEPS = 4
PARAMETERS = 6


def train(out: Path, **job: Any) -> list[dict[str, Any]]:
    """Run a job in a process for each device, and give what each has seen."""
    out.mkdir(parents=True, exist_ok=True)
    job = {"out": str(out), **job}
    command = [sys.executable, str(WORKER), json.dumps(job)]
    finished = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    seen = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(job["devices"])]
    seen[0]["stderr"] = finished.stderr
    return seen


@pytest.fixture(scope="module")
def unsharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of one process sees, with all the batch."""
    return train(tmp_path_factory.mktemp("unsharded"), strategy="auto", devices=1)[0]


@pytest.mark.parametrize(
    ("strategy", "devices", "accumulate"),
    [("ddp", 2, 1), ("ddp", 2, 2), ("ddp_spawn", 2, 1), ("fsdp2", 2, 1), ("fsdp2", 4, 1), ("fsdp2-hybrid", 4, 1)],
)
def test_every_process_measures_what_one_process_alone_would(
    tmp_path: Path, unsharded: dict[str, Any], strategy: str, devices: int, accumulate: int
) -> None:
    """Norms, maxima, ratios and histograms of a spread run equal those of the unsharded one, on each process."""
    for seen in train(tmp_path, strategy=strategy, devices=devices, accumulate=accumulate):
        assert len(seen["steps"]) == STEPS
        for step, truth in zip(seen["steps"], unsharded["steps"], strict=True):
            for quantity in ("loss", "grad_norm", "grad_max", "update_ratio", "weight_norm"):
                assert step[quantity] == pytest.approx(truth[quantity], rel=2e-6), quantity
            assert step["each"] == pytest.approx(truth["each"], rel=5e-6)
            assert step["nonfinite_count"] == truth["nonfinite_count"] == 0
            for quantity, histograms in truth["counts"].items():
                for name, counts in histograms.items():
                    assert_same_buckets(step["counts"][quantity][name], counts)


def assert_same_buckets(counts: list[int], truth: list[int]) -> None:
    """Hold two histograms to one another, but for values that rounding has moved over a border to the next bucket."""
    assert sum(counts) == sum(truth)
    moved = np.cumsum(counts) - np.cumsum(truth)
    assert np.abs(moved).max() <= 1
    assert np.count_nonzero(moved) <= 2


@pytest.mark.parametrize(
    ("strategy", "length"), [("ddp", 4), ("fsdp2", 4 + 2 * PARAMETERS)], ids=["replicated", "sharded"]
)
def test_a_calm_step_costs_one_small_collective(tmp_path: Path, strategy: str, length: int) -> None:
    """Where nothing is due, each step has one collective of a few numbers, whatever the strategy."""
    for seen in train(tmp_path, strategy=strategy, devices=2, interval=100):
        first_weights = seen["collectives"].count(2 * PARAMETERS)  # the weights' norm at the very first step
        assert seen["collectives"].count(length) == STEPS
        assert len(seen["collectives"]) == STEPS + first_weights
        assert first_weights <= 1


@pytest.mark.parametrize("on_explosion", ["warn", "stop"])
def test_a_loss_that_is_nan_on_one_rank_is_found_and_named_by_all(tmp_path: Path, on_explosion: str) -> None:
    """All ranks come to the same findings, with the rank and the batch of the bad loss, and stop together."""
    both = train(tmp_path, strategy="ddp", devices=2, poisoned_rank=1, on_explosion=on_explosion)
    assert [seen["findings"] for seen in both] == [both[0]["findings"]] * 2
    found = {finding["sign"]: finding for finding in both[0]["findings"]}
    assert found["nonfinite-loss"]["step"] == 2
    assert "batch 2 of rank 1" in found["nonfinite-loss"]["message"]
    assert ("nonfinite-weight" in found) == (on_explosion == "warn")
    assert [seen["broken"] for seen in both] == [False, False]


@pytest.mark.parametrize("hook", ["take", "_judge", "_finish"])
def test_a_monitor_that_fails_on_one_rank_ends_no_run(tmp_path: Path, hook: str) -> None:
    """The other ranks' monitors stand down at the next exchange instead of waiting for ever, and training goes on."""
    both = train(tmp_path, strategy="ddp", devices=2, failing=[1, hook])
    assert [seen["trained_steps"] for seen in both] == [STEPS, STEPS]
    assert [seen["broken"] for seen in both] == [True, True]
    assert "the monitor failed and is off" in both[0]["stderr"]
