"""Findings that are returned from a started process."""

from __future__ import annotations

import copy
import gc
import math
import pickle

from lightning_gradexplode.distributed.spawn_results import SpawnResults
from lightning_gradexplode.records import Finding, Severity

FINDING = Finding(7, "nonfinite-loss", Severity.CRITICAL, None, math.inf, math.inf, 'says "boom"')


def test_findings_of_a_pickled_copy_are_taken_once() -> None:
    """A pickled copy writes findings, infinite values included, and the original takes them, which deletes the file."""
    results = SpawnResults()
    pickle.loads(pickle.dumps(results)).leave([FINDING])
    assert results.take() == [FINDING]
    assert results.take() is None
    assert not results.path.exists()


def test_findings_that_nobody_takes_leave_no_file() -> None:
    """The file outlives the copy that wrote it, and is deleted with the original."""
    results = SpawnResults()
    written = pickle.loads(pickle.dumps(results))
    written.leave([FINDING])
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
