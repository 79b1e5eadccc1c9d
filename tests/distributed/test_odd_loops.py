"""Loops of plain PyTorch in several processes, each unlike the usual ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.measure.sharding import VERSION
from tests.processes import run_ranks

FOLDER = Path(__file__).parent

pytestmark = pytest.mark.distributed


def launch(worker: str, out: Path, names: list[str], processes: int) -> list[dict[str, Any]]:
    """Run loops in several processes, and return what each found."""
    run_ranks(FOLDER / worker, [str(out), *names], processes)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]


def wrong(worker: str, names: list[str], processes: int, out: Path) -> list[str]:
    """Run loops in several processes, and return those whose monitor has failed or whose norms are wrong."""
    return [
        name
        for found in launch(worker, out, names, processes)
        for name in names
        if found[name]["failed"] or not max(found[name]["errors"], default=0.0) < 1e-5
    ]


REPLICAS = ["accumulated", "moved", "joined", "differing", "averaged"]
SHARDED = ("broken_at_once", "sharded_in_halves")
SHARDS = ["clipped_by_the_loop", "partly_frozen", "made_on_meta", "zero_in_double"]


@pytest.mark.parametrize(
    ("names", "processes"),
    [
        (REPLICAS + SHARDS, 2),
        (["hybrid", "grouped"], 4),
    ],
    ids=["replicas and shards", "replicas of shards"],
)
def test_norms_are_exact_and_no_process_waits_for_ever(names: list[str], processes: int, tmp_path: Path) -> None:
    """On every process, at every step, on what counts as an accelerator; within ``join`` the monitor is off."""
    if VERSION < (2, 6):  # before, FSDP2 needs a GPU
        names = [name for name in names if name in REPLICAS]
    if not names:
        pytest.skip("before torch 2.6, FSDP2 needs a GPU")
    assert wrong("odd_worker.py", names, processes, tmp_path) == []


@pytest.mark.parametrize(
    ("names", "processes"),
    [
        (
            [
                "on_the_first_process_only",
                "on_the_second_process_only",
                "lost_on_the_process_without",
                "one_more_on_the_first_process",
            ],
            2,
        ),
        (["alone_and_later_together", "begun_in_another_order", "broken_at_once", "not_closed"], 2),
        (
            [
                *("independent", "independent_and_alike", "staged", "closed_early"),
                *("left_out_where_the_loss_is_nan", "left_out_on_all_processes"),
                *("averaged_seldom", "compressed", "shared_optimizer", "tensor_parallel"),
            ],
            2,
        ),
        (["sharded_in_halves"], 4),
    ],
    ids=["monitors", "times", "models and gradients", "halves"],
)
def test_processes_that_are_unlike_end_and_change_no_weights_alone(
    names: list[str], processes: int, tmp_path: Path
) -> None:
    """Where a monitor, a network or the gradients of the processes differ; norms are those of each process."""
    if VERSION < (2, 6):  # before, FSDP2 needs a GPU
        names = [name for name in names if name not in SHARDED]
    if not names:
        pytest.skip("before torch 2.6, FSDP2 needs a GPU")
    assert wrong("unlike_worker.py", names, processes, tmp_path) == []
