"""Scripts in several processes that share their imports, which take far longer than what the tests train.

Run as ``python ranks.py SCRIPT ARGUMENT...`` with the number of processes in ``WORLD_SIZE``. The imports of the script
are loaded once, with those of ``DistributedDataParallel`` and ``fully_shard``; then a process is forked for each rank,
with the variables that ``torchrun`` sets, and runs the script as its main module.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FINISHED = "finished"
"""File in a folder of results that are complete."""


def run_ranks(script: Path, arguments: Sequence[str], processes: int, cwd: Path | None = None) -> None:
    """Run a script in several processes of one group, and wait for all of them.

    Args:
        script: The script.
        arguments: Its arguments.
        processes: Number of processes; a single one has no variables of a group.
        cwd: The folder to run it in.

    Raises:
        AssertionError: One of the processes has failed.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(script), *arguments]
    if processes > 1:
        command.insert(1, __file__)
        environment |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "TORCHELASTIC_RUN_ID": "tests",  # by which Lightning knows that the processes are started already
        }
    finished = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def once(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], None]) -> Path:
    """Have results written once, and return their folder, also to other processes of pytest that ask for them.

    Args:
        factory: The fixture ``tmp_path_factory``.
        name: Name of the results.
        write: Writes them into a folder.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of all processes of pytest
    folder = base / name
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            write(folder)
            (folder / FINISHED).touch()
    assert (folder / FINISHED).exists(), f"{name} has failed in another process"
    return folder


def _fork(script: str, arguments: Sequence[str], processes: int) -> int:
    """Run a script in forked processes, and return how many of them have failed."""
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.distributed.fsdp")
    runpy.run_path(script, run_name="imports")
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            sys.argv = [script, *arguments]
            os._exit(_run(script))
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def _run(script: str) -> int:
    """Run a script as the main module, and return its exit status."""
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    sys.exit(_fork(sys.argv[1], sys.argv[2:], int(os.environ["WORLD_SIZE"])))
