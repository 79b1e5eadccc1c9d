"""What belongs to one optimizer, between steps and over checkpoints."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from lightning_gradexplode import AutoPolicy, ConstantClip, default_detectors
from lightning_gradexplode.clip import ClipPolicy
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.measure.parameters import parameters_of
from tests.detect.steps import noise, record, through_checkpoint


def optimizer(policy: ClipPolicy | None = None) -> OptimizerState:
    """Build the state of an optimizer of two parameters."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    return OptimizerState(
        0, SGD(parameters, lr=0.1), default_detectors(), policy, partial(parameters_of, module=nn.Module())
    )


def test_an_optimizers_state_goes_through_a_checkpoint() -> None:
    """Detectors, clip policy and clip rate go on as if nothing had happened."""
    one, other = optimizer(AutoPolicy()), optimizer(AutoPolicy())
    assert one.policy is not None
    assert other.policy is not None
    for step, norm in enumerate(noise(50)):
        one.detectors.check_before_update(record(step, grad_norm=norm))
        one.policy.threshold(record(step, grad_norm=norm))
        one.clip_rate(1.0, norm)
        one.steps += 1
    other.load_state_dict(through_checkpoint(one.state_dict()))
    assert other.steps == 50
    assert other.clip_rate(1.0, 2.0) == one.clip_rate(1.0, 2.0)
    late = record(50, grad_norm=500.0)
    assert other.policy.threshold(late) == one.policy.threshold(late)
    assert other.detectors.check_before_update(late) == one.detectors.check_before_update(late) != []


@pytest.mark.parametrize(
    ("before", "after"), [(None, AutoPolicy()), (AutoPolicy(), None), (ConstantClip(), AutoPolicy())]
)
def test_clipping_may_be_changed_between_two_runs(before: ClipPolicy | None, after: ClipPolicy | None) -> None:
    """A checkpoint of a run that clipped otherwise, or not at all, is no obstacle."""
    resumed = optimizer(after)
    resumed.load_state_dict(through_checkpoint(optimizer(before).state_dict()))
    assert resumed.steps == 0


def test_clip_rate_is_that_of_the_last_hundred_steps() -> None:
    """The rate counts norms above the threshold, NaN as well; a step whose size is unknown is left out."""
    one = optimizer()
    assert one.clip_rate(1.0, 0.5) == 0.0
    assert one.clip_rate(1.0, 2.0) == 0.5
    assert one.clip_rate(1.0, None) is None
    assert one.clip_rate(1.0, float("nan")) == pytest.approx(2 / 3)
    assert one.clip_rate(1.0, 1.0) == 0.5
    for _ in range(99):
        one.clip_rate(1.0, 0.5)
    assert one.clip_rate(1.0, 2.0) == 0.01


def test_policies_and_detectors_are_each_optimizers_own() -> None:
    """What one optimizer's steps teach a policy is not known to another one's."""
    policy = AutoPolicy()
    one, other = optimizer(policy), optimizer(policy)
    assert one.policy is not None
    assert other.policy is not None
    one.policy.threshold(record(0, grad_norm=1e6))
    assert other.policy.threshold(record(0, grad_norm=1.0)) == AutoPolicy().threshold(record(0, grad_norm=1.0))


def test_parameters_are_listed_anew_when_a_group_comes() -> None:
    """A group that is added while the run goes on, as in fine-tuning, is seen; else the list is kept."""
    module = nn.Linear(2, 3)
    one = OptimizerState(0, SGD([module.weight], lr=0.1), [], None, partial(parameters_of, module=module))
    first = one.parameters()
    assert first.names == ("weight",)
    assert one.parameters() is first
    one.optimizer.add_param_group({"params": [module.bias]})
    assert one.parameters().names == ("weight", "bias")


def test_recorded_steps_stay_when_a_group_comes() -> None:
    """The steps before a change of the parameters are those of the same run, and the first ones stay the first."""
    module = nn.Linear(2, 3)
    one = OptimizerState(0, SGD([module.weight], lr=0.1), [], None, partial(parameters_of, module=module))
    for step in range(40):
        if step == 20:
            one.optimizer.add_param_group({"params": [module.bias]})
        names = one.parameters().names
        one.recorder.add(record(step, parameters=names, per_parameter={"grad_norm": np.full(len(names), 1.0 + step)}))
    history = one.recorder.history()
    np.testing.assert_array_equal(history.step, np.arange(40))
    assert history.parameters == ("weight", "bias")
    np.testing.assert_array_equal(history.parameter_grad_norm[:, 0], 1.0 + np.arange(40))
    assert one.recorder.first().step.tolist() == list(range(16))
