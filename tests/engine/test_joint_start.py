"""What the processes of a run have to agree on before it begins, without a second process."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from lightning_gradexplode import PercentileClip
from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.distributed.process_group import ProcessFailedError
from lightning_gradexplode.engine.joint_start import DifferentProcessesError, begin_together
from tests.distributed.recorded import RecordedProcesses


def begin(mine: dict[str, Any], others: dict[str, Any], error: Exception | None = None) -> RecordedProcesses:
    """Begin in one of two processes, where the other one has these arguments, or has met an error.

    Returns:
        The processes, with what this one has sent.
    """
    other = RecordedProcesses()
    other.size = 2
    with suppress(OSError):
        begin_together(other, Arguments.checked(**others), error)
    processes = RecordedProcesses(other.sent[0])
    begin_together(processes, Arguments.checked(**mine), None)
    return processes


@pytest.mark.parametrize(
    ("mine", "others", "named"),
    [
        ({"ignore": ["gradient-spike"]}, {}, "detectors"),
        ({"clip": PercentileClip(10.0)}, {"clip": 1.0}, "clip"),
        ({"on_explosion": ["skip", "stop"]}, {"on_explosion": "skip"}, "on_explosion"),
        ({"diagnose": False, "clip": "auto"}, {}, "clip and diagnose"),
    ],
)
def test_arguments_that_differ_are_named(mine: dict[str, Any], others: dict[str, Any], named: str) -> None:
    """They would lead to collectives that not all processes take part in, or to other weights."""
    with pytest.raises(DifferentProcessesError, match=rf"^{named} must be the same on all processes"):
        begin(mine, others)


def test_what_one_process_may_do_alone_may_differ() -> None:
    """A report, and how often scalars are logged, lead to nothing that another process waits for."""
    assert len(begin({"report": False, "log_every_n_steps": 1, "alert_level": "warning"}, {}).sent) == 1


def test_a_process_that_cannot_begin_is_named() -> None:
    """The others do not begin either."""
    with pytest.raises(ProcessFailedError, match="rank 0"):
        begin({}, {}, OSError("on purpose"))
