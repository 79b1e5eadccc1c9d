"""Loops outside of Lightning in several processes, and on two machines that are simulated on one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def launch(kind: str, out: Path, nodes: int = 1, processes: int = 2) -> list[Any]:
    """Run the worker with one ``torchrun`` for each machine; return what each process wrote, by rank."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NUM_NODES": str(nodes)}
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc_per_node={processes}"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    worker = [str(ROOT / "tests/hosts/worker.py"), kind, str(out)]
    agents = [
        subprocess.Popen([*command, f"--node_rank={node}", *worker], env=environment, stderr=subprocess.PIPE, text=True)
        for node in range(nodes)
    ]
    errors = [agent.communicate(timeout=300)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * nodes, errors[0][-4000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(nodes * processes)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fabric", "transformers"])
def test_norms_are_those_of_one_process(kind: str, tmp_path: Path) -> None:
    """Before clipping, of all micro-batches and processes; only the first process writes."""
    if kind == "transformers":
        pytest.importorskip("transformers")
    results = launch(kind, tmp_path)
    for result in results:
        assert not result["failed"]
        assert len(result["errors"]) == 6
        assert max(result["errors"]) < 1e-5  # the reference adds its float32 gradients in another order
    assert results[0]["report"] == str(tmp_path / "gradexplode")
    assert (tmp_path / "gradexplode" / "index.html").exists()
    assert not (tmp_path / "gradexplode" / "run-2").exists()


def test_all_processes_hold_back_the_same_update(tmp_path: Path) -> None:
    """A NaN in the batch of the last process is a finding on each of them, and no weight becomes NaN."""
    results = launch("poisoned", tmp_path)
    assert all(not result["failed"] for result in results)
    assert all([3, "nonfinite-gradient"] in result["findings"] for result in results)


@pytest.mark.parametrize("kind", ["ddp", "fabric"])
def test_two_machines(kind: str, tmp_path: Path) -> None:
    """Two agents of torchrun with one process each: exact norms, and one report, from global rank zero."""
    results = launch(kind, tmp_path, nodes=2, processes=1)
    assert all(max(result["errors"]) < 1e-5 for result in results)
    assert (tmp_path / "gradexplode" / "index.html").exists()
    assert not (tmp_path / "gradexplode" / "run-2").exists()
