"""Loops outside of Lightning in several processes, and on two machines that are simulated on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.fsdp

from tests.processes import ROOT, free_port, once, run_ranks

pytestmark = pytest.mark.distributed

WORKER = Path(__file__).parent / "worker.py"


Results = dict[str, list[Any]]
"""What each process wrote of a loop, by rank, by the name of the loop."""


def launch(kinds: list[str], out: Path, nodes: int) -> Results:
    """Run loops, one after the other, with one ``torchrun`` for each machine, of one process."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NUM_NODES": str(nodes)}
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", "--nproc_per_node=1"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    worker = [str(WORKER), str(out), *kinds]
    agents = [
        subprocess.Popen([*command, f"--node_rank={node}", *worker], env=environment, stderr=subprocess.PIPE, text=True)
        for node in range(nodes)
    ]
    errors = [agent.communicate(timeout=300)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0] * nodes, errors[0][-4000:]
    return {kind: written(out / kind, nodes) for kind in kinds}


def written(folder: Path, processes: int) -> list[Any]:
    """Return what each process wrote."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def launch_lightning(out: Path) -> Results:
    """Run the worker once for each of two machines, as one does without ``torchrun``."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    shared = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, str(WORKER), str(out), "lightning"]
    machines = [
        subprocess.Popen(command, env={**shared, "NODE_RANK": str(node)}, stderr=subprocess.PIPE, text=True)
        for node in range(2)
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors[0][-4000:]
    return {"lightning": written(out / "lightning", 2)}


SHARDED = ("fsdp2", "poisoned_shards")


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """Loops that share their processes, since starting processes takes longest, and their folder."""
    kinds = ["ddp", "fabric", "poisoned", "rooted"]
    if hasattr(torch.distributed.fsdp, "fully_shard"):
        kinds += SHARDED
    out = once(tmp_path_factory, "loops of two", lambda folder: run_ranks(WORKER, [str(folder), *kinds], 2))
    return {kind: written(out / kind, 2) for kind in kinds}, out


def skip_with_older_versions(kind: str) -> None:
    """Skip a kind of loop that older versions of torch or transformers lack."""
    if kind == "transformers" and not hasattr(pytest.importorskip("transformers").Trainer, "_clip_grad_norm"):
        pytest.skip("the worker overrides a method that older versions do not have")
    if kind in SHARDED and not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("before torch 2.6, FSDP2 needs a GPU")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "fabric", "transformers"])
def test_norms_are_those_of_one_process(kind: str, together: tuple[Results, Path], tmp_path: Path) -> None:
    """Before clipping, of all micro-batches and processes; only the first process writes."""
    skip_with_older_versions(kind)
    results, out = together
    if kind not in results:
        run_ranks(WORKER, [str(tmp_path), kind], 2)
        results, out = {kind: written(tmp_path / kind, 2)}, tmp_path
    for result in results[kind]:
        assert not result["failed"]
        assert len(result["errors"]) == 6
        assert max(result["errors"]) < 1e-5  # the reference adds its float32 gradients in another order
    report = out / kind / "gradexplode"
    assert results[kind][0]["report"] == str(report)
    assert (report / "index.html").exists()
    assert not (report / "run-2").exists()


@pytest.mark.parametrize(("kind", "layer"), [("poisoned", "layer 0"), ("poisoned_shards", "addmm")])
def test_all_processes_hold_back_the_same_update(kind: str, layer: str, together: tuple[Results, Path]) -> None:
    """A NaN in the batch of the last process is found and named on each of them, and no weight becomes NaN."""
    skip_with_older_versions(kind)
    for result in together[0][kind]:
        assert not result["failed"]
        assert [3, "nonfinite-gradient"] in result["findings"]
        first = result["diagnosis"]["causes"][0]
        assert (first["kind"], first["where"]) == ("nonfinite-input", f"input of {layer}, row 2")


def test_the_process_whose_gradients_were_not_finite_is_found(together: tuple[Results, Path]) -> None:
    """All losses are finite, and the reduction spreads NaN to all processes: the replay of one of them shows it."""
    for result in together[0]["rooted"]:
        assert not result["failed"]
        assert {sign for _, sign in result["findings"]} == {"nonfinite-gradient"}
        diagnosis = result["diagnosis"]
        assert "of rank 1)" in diagnosis["what"]
        first = diagnosis["causes"][0]
        assert (first["kind"], "sqrt" in first["where"]) == ("undefined-operation", True)
        assert any("row 5" in sentence for sentence in first["evidence"])


@pytest.mark.parametrize("kinds", [["ddp", "fabric"], ["lightning"]], ids=["torchrun", "lightning"])
def test_a_run_on_two_machines_is_measured_exactly(kinds: list[str], tmp_path: Path) -> None:
    """By two agents of torchrun, or Lightning's own launcher: exact norms, and one report, from global rank zero."""
    is_own = kinds == ["lightning"]
    found = launch_lightning(tmp_path) if is_own else launch(kinds, tmp_path, nodes=2)
    for kind, results in found.items():
        assert [result["failed"] for result in results] == [False, False]
        assert all(max(result["errors"]) < 1e-5 for result in results)
        assert len(list((tmp_path / kind).rglob("index.html"))) == 1
