"""Scripts in processes of their own that share their imports, which take far longer than what the tests train.

The processes are forked from a server that has loaded torch, Lightning and the package. Each process of pytest starts
one at first use, which ends with it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FINISHED = "finished"
"""File in a folder of results that are complete."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch._dynamo", "torch.distributed.fsdp", "pytorch_lightning", "lightning_gradexplode", "pytest"]
)


class Ended(NamedTuple):
    """How a process has ended, and what it printed."""

    exit_code: int
    output: str
    errors: str


class Script:
    """A script that runs in a forked process.

    Args:
        path: The script, which is run as the main module.
        arguments: Its arguments.
        cwd: The folder to run it in; by default the root of the repository.
        variables: Environment variables that are added to those of this process.
    """

    def __init__(
        self,
        path: Path,
        arguments: Sequence[str] = (),
        cwd: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": _search_path(), **(variables or {})}
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [Path(self._folder.name) / name for name in ("output", "errors")]
        self._process: ForkServerProcess = SERVER.Process(
            target=_run, args=(str(path), list(arguments), cwd or ROOT, environment, self._printed)
        )
        self._process.start()

    def wait(self, timeout: float = 300.0) -> Ended:
        """Wait until the script has ended, and return how.

        Args:
            timeout: Time in seconds after which the process is killed.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        exit_code = self._process.exitcode
        assert exit_code is not None
        self._process.close()
        output, errors = (file.read_text() if file.exists() else "" for file in self._printed)
        self._folder.cleanup()
        return Ended(exit_code, output, errors)


def run_ranks(script: Path, arguments: Sequence[str], processes: int, cwd: Path | None = None) -> None:
    """Run a script in several processes of one group, with the variables that ``torchrun`` sets, and wait for all.

    Args:
        script: The script.
        arguments: Its arguments.
        processes: Number of processes; a single one has no variables of a group.
        cwd: The folder to run it in.

    Raises:
        AssertionError: One of the processes has failed.
    """
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "TORCHELASTIC_RUN_ID": "tests",  # by which Lightning knows that the processes are started already
    }
    ranks = [
        Script(script, arguments, cwd, {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else None)
        for rank in range(processes)
    ]
    failed = [one.errors[-4000:] for one in [rank.wait() for rank in ranks] if one.exit_code != 0]
    assert not failed, "\n".join(failed)


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


def _search_path() -> str:
    """Return ``PYTHONPATH`` with the root of the repository, for processes that a script starts."""
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def _run(script: str, arguments: list[str], cwd: Path, environment: dict[str, str], printed: list[Path]) -> None:
    """Run a script as the main module, and write what it prints into files."""
    for stream, file in zip((sys.stdout, sys.stderr), printed, strict=True):
        stream.flush()
        with file.open("wb") as target:
            os.dup2(target.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(script, run_name="__main__")
