"""Findings that come back from another process."""

from __future__ import annotations

import copy
import math
import pickle

from lightning_gradexplode.distributed.spawn_results import SpawnResults
from lightning_gradexplode.records import Finding, Severity

FINDING = Finding(7, "nonfinite-loss", Severity.CRITICAL, None, math.inf, math.inf, 'says "boom"')


def test_what_a_copy_leaves_is_taken_once() -> None:
    """A pickled copy leaves findings, infinite values and all, and the original takes them, which empties the box."""
    mailbox = SpawnResults()
    pickle.loads(pickle.dumps(mailbox)).leave([FINDING])
    assert mailbox.take() == [FINDING]
    assert mailbox.take() is None
    assert not mailbox.path.exists()


def test_boxes_are_kept_apart() -> None:
    """Two boxes have two places; a copy has the original's."""
    one, other = SpawnResults(), SpawnResults()
    assert one.path != other.path
    assert copy.deepcopy(one).path == one.path
