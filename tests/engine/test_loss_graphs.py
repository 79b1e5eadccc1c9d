"""In a loop that calls ``watch.loss`` only, the graph of the loss shows operation, data and parameters at fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch
from lightning_gradexplode.diagnose.graph import saved_tensor_hooks
from lightning_gradexplode.engine import loss_graphs
from lightning_gradexplode.measure import reading
from lightning_gradexplode.records import Diagnosis
from lightning_gradexplode.testing import PlainLoop
from tests.runs.models import Regression
from tests.runs.probe import QUIET
from tests.torch_versions import needs_graph_values

Loss = Callable[[Any, Tensor, int], Tensor]


def diagnosed(
    loss_of: Loss, model: nn.Module, steps: int = 14, kind: Any = torch.optim.SGD, **arguments: Any
) -> Diagnosis:
    """Train in a plain loop, and return the diagnosis."""
    random = torch.Generator().manual_seed(1)
    optimizer = kind(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False, **arguments) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model, torch.randn(16, 4, generator=random), step)
            watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = watch.diagnosis()
    assert found is not None
    return found


@pytest.fixture
def model() -> nn.Sequential:
    """Return a small network."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


@needs_graph_values
def test_an_operation_is_named(model: nn.Sequential) -> None:
    """The logarithm takes a negative number at the tenth step."""

    def loss(net: Any, batch: Tensor, step: int) -> Any:
        return (net(batch).square() + 1 - 2 * (step == 10)).log().mean()

    found = diagnosed(loss, model)
    assert (found.step, found.causes[0].kind, found.causes[0].where) == (10, "undefined-operation", "`log`")


class Logarithm(torch.autograd.Function):
    """A function of the user's own that becomes infinite by an operation that no graph shows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the logarithm of the absolute values."""
        ctx.save_for_backward(values)
        return values.abs().log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return its derivative."""
        (values,) = ctx.saved_tensors
        return torch.as_tensor(gradient / values)


@pytest.mark.parametrize("hidden", ["checkpoint", "own function"])
def test_what_a_hidden_operation_has_done_is_unknown(model: nn.Sequential, hidden: str) -> None:
    """A reentrant checkpoint, or a function of the user's own, may have overflowed, or computed a logarithm of zero."""

    def logarithm(values: Tensor) -> Tensor:
        return values.abs().log()

    def loss(net: nn.Module, batch: Tensor, step: int) -> Tensor:
        values = net(batch) * (step < 10)
        if hidden == "checkpoint":
            result = checkpoint(logarithm, values, use_reentrant=True)
        else:
            result = Logarithm.apply(values)  # type: ignore[no-untyped-call]
        return torch.as_tensor(result.square().mean())

    assert diagnosed(loss, model).causes[0].kind == "unknown"


def test_a_row_of_the_input_is_named_though_later_losses_are_lost(model: nn.Sequential) -> None:
    """From the tenth step on all weights are NaN; what is told is of the tenth step."""

    def loss(net: nn.Module, batch: Tensor, step: int) -> Tensor:
        batch[3, 2] = float("nan") if step == 10 else batch[3, 2]
        return functional.mse_loss(net(batch), torch.zeros(16, 1))

    found = diagnosed(loss, model)
    assert (found.causes[0].kind, found.causes[0].where) == ("nonfinite-input", "input of layer 0, row 3")


@needs_graph_values
def test_the_first_graph_is_read_on_an_accelerator(model: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host waits for it once; a softmax over a single class has no gradient in any step."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)

    def loss(net: Any, batch: Tensor, step: int) -> Tensor:
        return functional.cross_entropy(net(batch), torch.zeros(16, dtype=torch.long))

    found = diagnosed(loss, model, steps=80)
    assert found.causes[0].kind == "empty-reduction"


@needs_graph_values
def test_a_row_that_comes_back_is_named_each_time(model: nn.Sequential) -> None:
    """One graph is read for an incident, however many losses of it are lost, so that later ones are diagnosed too."""

    def loss(net: nn.Module, batch: Tensor, step: int) -> Tensor:
        target = batch.sum(1, keepdim=True)
        if step % 100 > 50 and step % 4 == 0:
            target[5] = 1e30  # its square overflows, its gradient does not
        return functional.mse_loss(net(batch), target)

    found = diagnosed(loss, model, steps=300, kind=torch.optim.Adam)
    assert (found.step, found.causes[0].where) == (252, "target of mse_loss, row 5")


def test_parameters_that_nothing_initialized_are_named(model: nn.Sequential) -> None:
    """They are NaN before the first update."""
    model.get_parameter("2.weight").data[0, 1] = float("nan")
    found = diagnosed(lambda net, batch, step: net(batch).square().mean(), model)
    assert (found.causes[0].kind, found.causes[0].where) == ("initialization", "2.weight")
    assert "skip" not in found.remedies[0]


def test_targets_of_a_large_scale_are_known_before_a_loss_is_lost(model: nn.Sequential) -> None:
    """The first graph shows the data; nothing is said of a recurrence."""
    square = nn.Sequential(model[0], nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    found = diagnosed(lambda net, batch, step: functional.mse_loss(net(batch), 3e5 + 1e3 * batch[:, :1]), square)
    assert (found.causes[0].kind, found.causes[0].where) == ("unscaled-data", "target of mse_loss")


def test_nothing_is_read_with_diagnose_off(model: nn.Sequential) -> None:
    """What is left is unknown."""

    def loss(net: Any, batch: Tensor, step: int) -> Any:
        return (net(batch).square() + 1 - 2 * (step == 10)).log().mean()

    assert diagnosed(loss, model, diagnose=False).causes[0].kind == "unknown"


class Findings(Regression):
    """A binary cross-entropy whose labels begin at a value."""

    least = 0.0

    def loss(self, batch: Any) -> Tensor:
        """Return the loss, by a function and no module."""
        inputs, _ = batch
        labels = (inputs[:, :1] > 0).float() * (1 - self.least) + self.least
        return functional.binary_cross_entropy_with_logits(self.layers(inputs), labels)


@pytest.mark.parametrize("least", [0.0, pytest.param(-1.0, marks=needs_graph_values)])
def test_the_first_graph_names_the_loss_of_a_run_in_which_nothing_explodes(least: float) -> None:
    """Labels of -1 let the loss fall below zero slowly; their name is not that of a field, and is not known."""
    torch.manual_seed(0)
    module = Findings(lambda parameters: torch.optim.Adam(parameters, lr=0.02))
    module.least = least
    monitor = GradientExplosionMonitor(report=False, log_every_n_steps=1)
    pl.Trainer(**{**QUIET, "max_steps": 80}, logger=False, callbacks=[monitor]).fit(module)
    found = monitor.diagnosis()
    assert (None if found is None else found.causes[0].kind) == (None if least == 0.0 else "target-out-of-range")


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_factor_of_the_loss_that_grows_is_named(model: nn.Sequential, optimizer: Any) -> None:
    """With Adam the loss stays finite: the graph after the first critical finding shows the factor."""

    def loss(net: nn.Module, batch: Tensor, step: int) -> Tensor:
        return 2.0**step * functional.mse_loss(net(batch), batch[:, :1])

    found = diagnosed(loss, model, 40, kind=optimizer)
    assert (found.causes[0].kind, found.causes[0].confidence) == ("loss-without-floor", 0.96)
    assert "multiplied by 1 at the start" in found.causes[0].evidence[0]


def test_a_constant_factor_of_the_loss_is_not_said_to_grow(model: nn.Sequential) -> None:
    """What grows is the loss, at a learning rate that does not fit the factor."""

    def loss(net: nn.Module, batch: Tensor, step: int) -> Tensor:
        return 300.0 * functional.mse_loss(net(batch), batch[:, :1])

    assert diagnosed(loss, model, 40).causes[0].kind != "loss-without-floor"


@pytest.mark.parametrize(("level", "kind"), [(0.0, "moving-target"), (0.012, "unknown")])
def test_data_that_grow_are_told_from_targets_that_the_network_makes(
    model: nn.Sequential, level: float, kind: str
) -> None:
    """The first layer's input is compared with that of the first loss; targets and outputs grow in both runs."""

    def loss(net: nn.Module, batch: Tensor, step: int) -> Tensor:
        scale = math.exp(level * step)
        outputs = net(batch * scale)
        targets = batch.sum(1, keepdim=True) * scale if level else 1.5 * outputs.detach() + 1
        return functional.mse_loss(outputs, targets)

    assert diagnosed(loss, model, 420, kind=torch.optim.Adam).causes[0].kind == kind


def test_graphs_after_explosions_are_read_a_bounded_number_of_times(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many explosions a run has, the graphs of the losses after them are read eight times at most."""
    read: list[Tensor] = []
    monkeypatch.setattr(loss_graphs, "facts_of_loss", lambda *arguments: read.append(arguments[0]))
    graphs = loss_graphs.LossGraphs(PlainLoop(model, [], lambda batch: torch.zeros(())), is_on=True)
    for _ in range(30):
        loss = model(torch.ones(2, 4)).mean()
        graphs.read(loss, loss.item())
        graphs.request()
    assert len(read) == 1 + loss_graphs.MAX_GRAPHS


@needs_graph_values
def test_a_run_without_values_of_graphs_says_so_once(
    model: nn.Sequential, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Older versions of torch do not show which saved tensors have hooks; with them, no value is read."""
    monkeypatch.setattr(saved_tensor_hooks, "ARE_SHOWN", False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            loss = checkpoint(model, torch.randn(6, 4), use_reentrant=False).square().mean()
            watch.loss(loss)
            loss.backward()
            optimizer.step()
    assert not watch.failed
    assert len([one for one in caplog.messages if "values in the graph of a loss are not read" in one]) == 1
