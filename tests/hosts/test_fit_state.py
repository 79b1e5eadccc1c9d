"""The state that a fit continues from."""

from __future__ import annotations

import pickle

from torch import nn

from lightning_gradexplode.hosts.fit_state import FitState


def test_a_fit_continues_from_the_fit_before_with_the_same_module_only() -> None:
    """The state of a fit is taken once by the next fit of the module; another module starts without it."""
    module, other, state = nn.Linear(1, 1), nn.Linear(1, 1), FitState()
    assert state.take(module) == {}
    state.state = {"step": 3}
    assert state.take(module) == {"step": 3}
    assert state.take(module) == {}
    state.state = {"step": 4}
    assert state.take(other) == {}


def test_a_loaded_state_belongs_to_any_module() -> None:
    """A checkpoint is loaded before a fit or at its start, also for a module that was not trained before."""
    state = FitState()
    state.load({"step": 3})
    state.begin_stage("fit")
    assert state.take(nn.Linear(1, 1)) == {"step": 3}


def test_a_state_that_a_test_has_loaded_is_dropped_by_a_fit() -> None:
    """What ``trainer.test`` loads from a checkpoint does not belong to a later fit."""
    state = FitState()
    state.begin_stage("test")
    state.load({"step": 3})
    state.end_stage()
    state.begin_stage("fit")
    assert state.take(nn.Linear(1, 1)) == {}


def test_a_copy_has_the_state_but_no_module() -> None:
    """A pickled state can be loaded in another process, where the module does not exist."""
    module, state = nn.Linear(1, 1), FitState()
    state.take(module)
    state.state = {"step": 3}
    copied = pickle.loads(pickle.dumps(state))
    assert copied.state == {"step": 3}
    assert copied.take(module) == {}
