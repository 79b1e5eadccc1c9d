"""Loops of plain PyTorch in several processes that pretend to have accelerators, each unlike the usual ones."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.measure.sharding import VERSION

WORKER = Path(__file__).parent / "odd_worker.py"

pytestmark = pytest.mark.distributed


def launch(out: Path, names: list[str], processes: int) -> list[dict[str, Any]]:
    """Run loops in several processes, and return what each found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(out), *names],
            env={**os.environ, **shared, "WORLD_SIZE": str(processes), "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    errors = [one.communicate(timeout=300)[1] for one in started]
    assert [one.returncode for one in started] == [0] * processes, errors[0][-4000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.parametrize(
    ("names", "processes"),
    [
        (["accumulated", "moved", "joined", "differing", "averaged"], 2),
        (["clipped_by_the_loop", "partly_frozen", "made_on_meta", "zero_in_double"], 2),
        (["hybrid", "grouped"], 4),
    ],
    ids=["replicas", "shards", "replicas of shards"],
)
def test_norms_are_exact_and_no_process_waits_for_ever(names: list[str], processes: int, tmp_path: Path) -> None:
    """On every process, at every step; where processes end one after the other, the monitor is off."""
    if "joined" not in names and VERSION < (2, 6):
        pytest.skip("before torch 2.6, FSDP2 needs a GPU")
    for found in launch(tmp_path, names, processes):
        for name in names:
            assert not found[name]["failed"], name
            assert max(found[name]["errors"], default=0.0) < 1e-5, name
