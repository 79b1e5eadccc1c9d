"""Results that are returned from a started process."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading

from lightning_gradexplode.distributed.spawn_results import SpawnResults
from lightning_gradexplode.records import Finding, Severity

FOUND = {"findings": [Finding(7, "nonfinite-loss", Severity.CRITICAL, None, math.inf, math.inf, 'says "boom"')]}


def test_results_of_a_pickled_copy_are_taken_once() -> None:
    """A pickled copy writes findings, infinite values included, and the original takes them, which deletes the file."""
    results = SpawnResults()
    pickle.loads(pickle.dumps(results)).leave(FOUND)
    assert results.take() == FOUND
    assert results.take() is None
    assert not results.path.exists()


def test_what_cannot_be_pickled_is_left_out() -> None:
    """The other results arrive; nobody else can read the file."""
    results = SpawnResults()
    results.leave({**FOUND, "last": threading.Lock(), "failed": False})
    assert results.path.stat().st_mode & 0o077 == 0
    assert results.take() == {**FOUND, "failed": False}


def test_results_that_are_not_taken_leave_no_file() -> None:
    """The file outlives the copy that wrote it, and is deleted with the original."""
    results = SpawnResults()
    written = pickle.loads(pickle.dumps(results))
    written.leave(FOUND)
    path = written.path
    del written
    gc.collect()
    assert path.exists()
    del results
    gc.collect()
    assert not path.exists()


def test_results_of_two_monitors_are_kept_apart() -> None:
    """Each original has a path of its own; a copy has that of its original."""
    one, other = SpawnResults(), SpawnResults()
    assert one.path != other.path
    assert copy.deepcopy(one).path == one.path
