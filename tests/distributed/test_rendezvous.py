"""Which processes measure together, with threads in place of processes and a store in memory."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradexplode.distributed import process_group, rendezvous
from lightning_gradexplode.distributed.process_group import Alone, ConnectedProcesses, ProcessFailedError
from lightning_gradexplode.distributed.rendezvous import fingerprint, meet

distributed: Any = torch.distributed  # whose stores have no type hints


def begin(
    store: Any, models: list[str], delays: list[float] | None = None, size: int | None = None
) -> list[str | None]:
    """Begin in several processes, and return the outcome of each."""

    def one(place: int) -> str | None:
        time.sleep(0.0 if delays is None else delays[place])
        return meet(store, size or len(models), models[place], rendezvous.MAX_SECONDS)

    with ThreadPoolExecutor(len(models)) as threads:
        return list(threads.map(one, range(len(models))))


def stores(folder: Path) -> list[Any]:
    """Build a store of each kind."""
    seconds = timedelta(seconds=20)
    return [
        distributed.HashStore(),
        distributed.PrefixStore("some", distributed.HashStore()),
        distributed.FileStore(str(folder / "store"), 1),
        distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=seconds),
    ]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("processes", [1, 2, 5])
def test_all_measure_together(kind: int, processes: int, tmp_path: Path) -> None:
    """Whenever they come, as long as the first one waits."""
    store = stores(tmp_path)[kind]
    assert begin(store, ["same"] * processes, [0.03 * place for place in range(processes)]) == [None] * processes


@pytest.mark.parametrize("kind", range(4))
def test_processes_of_other_models_do_not_wait_for_one_another(kind: int, tmp_path: Path) -> None:
    """They measure by themselves at once, also where a third one is missing."""
    began = time.monotonic()
    outcomes = begin(stores(tmp_path)[kind], ["one", "other"], size=3)
    assert outcomes == ["the models of the processes differ"] * 2
    assert time.monotonic() - began < 60


def test_one_without_others_begins_alone_and_late_ones_do_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was decided once holds for all, however late; the wait is logged."""
    monkeypatch.setattr(rendezvous, "SECONDS_TO_LOG", 0.0)
    store = distributed.HashStore()
    with caplog.at_level(logging.WARNING):
        assert meet(store, 2, "same", 0.1) == "1 of 2 processes have no monitor"
    assert "each process has to construct one" in caplog.text
    assert meet(store, 2, "same", 0.1) == "1 of 2 processes have no monitor"


def test_a_missing_process_is_waited_for_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes while another one waits has no wait of its own."""
    monkeypatch.setattr(rendezvous, "MAX_SECONDS", 0.3)
    began = time.monotonic()
    outcomes = begin(distributed.HashStore(), ["same"] * 2, [0.0, 0.2], size=3)
    assert len(set(outcomes)) == 1
    assert outcomes[0] is not None
    assert time.monotonic() - began < 30


def test_networks_differ_by_names_shapes_and_optionally_weights() -> None:
    """Replicas have the same fingerprint, also before lazy modules and those on meta have their memory."""
    torch.manual_seed(0)
    networks = [nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 3), nn.LazyLinear(2), nn.Linear(3, 2, device="meta")]
    assert fingerprint(networks[0], False) == fingerprint(networks[1], False) == fingerprint(networks[4], False)
    assert len({fingerprint(network, True) for network in networks}) == len(networks)
    networks[1].load_state_dict(networks[0].state_dict())
    assert fingerprint(networks[0], True) == fingerprint(networks[1], True)


def test_the_default_store_is_found(tmp_path: Path) -> None:
    """``torch.distributed`` has no public way to it: this fails where the private one is gone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        store = rendezvous._default_store()
        assert store.add("number", 2) == 2
    finally:
        torch.distributed.destroy_process_group()


def test_a_store_that_is_gone_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process measures by itself, and the reason is that of the store."""

    def fail() -> None:
        raise RuntimeError("gone on purpose")

    monkeypatch.setattr(rendezvous, "_default_store", fail)
    monkeypatch.setattr(distributed, "get_process_group_ranks", lambda group: [0, 1])
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        world = rendezvous.join(nn.Linear(2, 1), torch.device("cpu"))
    finally:
        distributed.destroy_process_group()
    assert isinstance(world, Alone)
    assert world.reason is not None
    assert "gone on purpose" in world.reason


def test_a_process_that_ends_leaves_no_other_waiting() -> None:
    """The other one learns it in its next exchange, or in the one that it waits in."""
    store = distributed.HashStore()

    def connect(rank: int) -> ConnectedProcesses:
        return ConnectedProcesses(2, distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60)))

    ones = torch.ones(2, dtype=torch.float64)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(connect, range(2))
        values = threads.map(
            lambda one: one.gather_tensor(torch.ones(2, dtype=torch.float64)).tolist(), [first, second]
        )
        assert list(values) == [[1.0] * 4] * 2
        waits = threads.submit(first.gather_tensor, torch.ones(2, dtype=torch.float64))
        second.close()
        with pytest.raises(ProcessFailedError, match="has ended"):
            waits.result(timeout=60)
    with pytest.raises(ProcessFailedError, match="has ended"):
        second.gather_tensor(ones)
    first.close()


def test_a_long_wait_for_another_process_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait goes on after that, and its result is what the other one sends."""
    monkeypatch.setattr(process_group, "SECONDS_TO_LOG", 0.05)
    store = distributed.HashStore()

    def connect(rank: int) -> ConnectedProcesses:
        return ConnectedProcesses(2, distributed.ProcessGroupGloo(store, rank, 2, timedelta(seconds=60)))

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(connect, range(2))
        for _ in range(2):
            waits = threads.submit(first.gather_tensor, torch.ones(1, dtype=torch.float64))
            time.sleep(0.2)
            assert second.gather_tensor(torch.zeros(1, dtype=torch.float64)).tolist() == [1.0, 0.0]
            assert waits.result(timeout=60).tolist() == [1.0, 0.0]
    assert [record.getMessage() for record in caplog.records] == [process_group.WAITING % (0.05, 1800)]
    first.close()
    second.close()
