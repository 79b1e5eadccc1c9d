"""Random states are recorded and restored exactly."""

from __future__ import annotations

import random

import numpy as np
import torch

from lightning_gradexplode.diagnose.replay import RandomState


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_restored_generators_draw_the_same_numbers() -> None:
    """torch's, Python's and NumPy's generators go on from where they were recorded."""
    state = RandomState.capture()
    first = drawn()

    state.restore()

    assert drawn() == first


def test_what_was_not_recorded_is_left_as_it_is() -> None:
    """The cheap record holds torch's state only."""
    state = RandomState.capture(everything=False)
    first = drawn()

    state.restore()
    second = drawn()

    assert second[0] == first[0]
    assert second[1:] != first[1:]
