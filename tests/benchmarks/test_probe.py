"""The outcomes of runs that are too simple to be in doubt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.scenarios.module import ScenarioModule, sgd
from benchmarks.scenarios.probe import Outcome, Probe, losses_before
from benchmarks.scenarios.recording import fit


class Script(ScenarioModule):
    """Reports the losses it is told to, whatever its one weight does."""

    def __init__(self, losses: list[float], rate: float = 0.0, weight: float = 1.0) -> None:
        super().__init__(nn.Linear(1, 1, bias=False), nn.functional.mse_loss, sgd(rate))
        nn.init.constant_(self.network.get_parameter("weight"), weight)
        self.losses = losses

    def loss(self, batch: Tensor) -> Tensor:
        """Return the next loss, with a gradient of one for the weight."""
        weight = self.network.get_parameter("weight").sum()
        return weight - weight.detach() + self.losses[int(batch)]


def outcome(losses: list[float], start: list[float], rate: float = 0.0, weight: float = 1.0) -> Outcome:
    probe = Probe(start)
    fit(Script(losses, rate, weight), torch.arange(len(losses)), [probe], {})
    return probe.outcome()


def test_a_falling_loss_is_healthy() -> None:
    """A run whose loss falls is healthy, and was never lost."""
    assert outcome([1 / (step + 1) for step in range(40)], [1.0]) == Outcome("healthy", None, "")


def test_a_loss_that_is_not_finite_loses_the_run() -> None:
    """The first infinite loss is the step at which the run was lost."""
    found = outcome([1.0, 1.0, 1.0, math.inf, 1.0], [1.0])
    assert (found.label, found.lost) == ("explodes", 3)


@pytest.mark.parametrize(("factor", "lost"), [(1.0, None), (math.nan, 2)])
def test_sparse_gradients_are_checked(factor: float, lost: int | None) -> None:
    """They are those of embeddings; the loss itself stays finite."""

    class Sparse(ScenarioModule):
        def __init__(self) -> None:
            super().__init__(nn.Embedding(3, 2, sparse=True), nn.functional.mse_loss, sgd(0.0))

        def loss(self, batch: Tensor) -> Tensor:
            """Return a loss of one, with a gradient of the factor at step 2."""
            rows: Tensor = self.network(batch % 3).sum()
            if int(batch) == 2:
                rows.register_hook(lambda gradient: factor * gradient)  # type: ignore[no-untyped-call]
            return rows - rows.detach() + 1.0

    probe = Probe([1.0])
    fit(Sparse(), torch.arange(10), [probe], {})
    assert probe.outcome().lost == lost


def test_a_lasting_loss_above_ten_times_the_start_loses_the_run() -> None:
    """The run is lost at the fifth step in a row above ten times the start, and not at the fourth."""
    found = outcome([1.0, 1.0, *[10.5] * 8], [1.0])
    assert (found.label, found.lost) == ("explodes", 6)


def test_a_peak_that_comes_back_is_grey() -> None:
    """Four steps above ten times the start are no explosion, and no health either; a single one is forgiven."""
    assert outcome([1.0] * 10 + [11.0] * 4 + [1.0] * 30, [1.0]).label == "grey"
    assert outcome([1.0] * 10 + [11.0] + [1.0] * 30, [1.0]).label == "healthy"


def test_an_end_above_twice_the_start_is_grey() -> None:
    """A run that ends above where it started, but not far above, counts for nobody."""
    assert outcome([1.0] * 10 + [3.0] * 30, [1.0]).label == "grey"


def test_a_loss_below_zero_is_judged_by_its_own_size() -> None:
    """Around minus two the limit is sixteen: a rise by nine units of two."""
    assert outcome([-2.0, *[15.0] * 6], [-2.0]).label == "grey"
    assert outcome([-2.0, *[17.0] * 6], [-2.0]).label == "explodes"


def test_weights_above_a_hundred_times_their_start_lose_the_run() -> None:
    """The weight begins at one and falls by thirty a step: it passes a hundred at the fourth."""
    found = outcome([1.0] * 10, [1.0], rate=30.0)
    assert (found.label, found.lost) == ("explodes", 3)


def test_weights_of_zero_are_measured_from_the_first_step() -> None:
    """Nothing is a hundred times zero: the weight is at one after the first step, and passes a hundred at the 101st."""
    assert outcome([1.0] * 25, [1.0], rate=1.0, weight=0.0).label == "healthy"
    found = outcome([1.0] * 110, [1.0], rate=1.0, weight=0.0)
    assert (found.label, found.lost) == ("explodes", 100)


def test_a_lost_run_goes_on_for_ten_steps() -> None:
    """Ten more steps are trained after the loss of the run, so that late alarms are seen as well."""
    probe = Probe([1.0])
    fit(Script([1.0, 1.0, math.nan, *[1.0] * 50]), torch.arange(53), [probe], {})
    assert (probe.lost, probe.last_step) == (2, 12)


def test_looking_at_losses_beforehand_changes_nothing() -> None:
    """Neither the weights, nor the statistics of a normalisation, nor the random state move."""
    module = ScenarioModule(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), nn.functional.mse_loss, sgd(0.1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batch = torch.randn(4, 3), torch.randn(4, 3)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert len(losses_before(module, [batch, batch])) == 2
    assert torch.rand(1) == expected
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_loses_the_run(rate: float) -> None:
    """A step that ruins the weights is the step at which the run was lost."""
    found = outcome([1.0] * 5, [1.0], rate=rate)
    assert (found.label, found.lost) == ("explodes", 0)
