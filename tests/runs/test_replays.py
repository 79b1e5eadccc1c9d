"""Steps of whole runs, computed again at an incident: what is found, and that nothing of the run changes."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.measure import reading
from tests.measure.batches import Slotted
from tests.runs.probe import QUIET
from tests.runs.test_memory import Held
from tests.torch_versions import needs_graph_values

FAULT = 6
"""The batch at fault."""


class Network(pl.LightningModule):
    """Two layers, whose training step counts on ``self``, and takes the root of a negative number at one step."""

    body: Any
    average: Any

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        self.calls = 0

    def factor(self, size: int) -> Tensor:
        """Return ones, with another value in row 2 of the batch at fault."""
        factor = torch.ones(size, 1)
        if self.calls == FAULT + 1:
            factor[2] = -1.0
        return factor

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        y = self.body(batch[0]).abs() + 1.0
        return torch.sqrt(y * self.factor(len(y))).mean()  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(
            TensorDataset(torch.randn(96, 4, generator=generator), torch.randint(0, 3, (96,), generator=generator)), 8
        )


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **trainer: Any) -> pl.Trainer:
    """Train for ten steps from a fixed seed."""
    one = pl.Trainer(**{**QUIET, "max_steps": 10, **trainer}, logger=False, callbacks=list(callbacks))
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    one.fit(module)
    return one


def replay_of(module: pl.LightningModule, folder: Path, **trainer: Any) -> dict[str, Any]:
    """Train with a monitor; return what ``diagnosis.json`` holds of the replay."""
    fit(module, GradientExplosionMonitor(report=folder), **trainer)
    found: dict[str, Any] = json.loads((folder / "diagnosis.json").read_text())["replay"]
    return found


def test_a_fault_that_depends_on_a_counter_of_the_module_is_found_again(tmp_path: Path) -> None:
    """The copy counts from where the module stood when the step began, and the module's own counter goes on."""
    module = Network()
    replay = replay_of(module, tmp_path)

    assert (replay["status"], replay["reason"]) == ("reproduced", "")
    assert (replay["first"]["name"], replay["first"]["rows"]) == ("sqrt", [2])
    assert replay["first"]["code"].endswith("# fault")
    assert module.calls == 10


def test_a_fault_that_depends_on_what_a_hook_has_set_is_found_again(tmp_path: Path) -> None:
    """What the module's own hook sets after the batch began is as it was at the step."""

    class Hooked(Network):
        """Learns from a hook which batch fails."""

        fails = False

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.fails = batch_idx == FAULT

        def factor(self, size: int) -> Tensor:
            return torch.ones(size, 1) - 2.0 * float(self.fails)

    replay = replay_of(Hooked(), tmp_path)

    assert (replay["status"], replay["first"]["name"]) == ("reproduced", "sqrt")


def test_the_micro_batch_that_fails_is_replayed_and_not_the_last_one(tmp_path: Path) -> None:
    """With gradients added over four batches, the third of them is at fault."""
    replay = replay_of(Network(), tmp_path, accumulate_grad_batches=4, max_steps=3)

    assert FAULT % 4 == 2
    assert (replay["status"], replay["first"]["name"], replay["first"]["rows"]) == ("reproduced", "sqrt", [2])


def decorated(step: Any) -> Any:
    """Wrap a training step, as decorators that measure time or check shapes do."""

    @functools.wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    return wrapper


class Decorated(Network):
    """Its training step is within a decorator."""

    training_step = decorated(Network.training_step)


class Variadic(Network):
    """Its training step takes any number of arguments, of which Lightning passes two."""

    def training_step(self, *arguments: Any) -> Any:
        batch, batch_idx = arguments
        return super().training_step(batch, batch_idx)


class WithoutIndex(Network):
    """Its training step takes the batch only."""

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().training_step(batch, 0)


@pytest.mark.parametrize("kind", [Decorated, Variadic, WithoutIndex])
def test_a_training_step_gets_the_arguments_that_lightning_gives_it(kind: type[Network], tmp_path: Path) -> None:
    """The replay passes the index of the batch wherever Lightning does, whatever the signature is."""
    replay = replay_of(kind(), tmp_path)

    assert (replay["status"], replay["reason"]) == ("reproduced", "")
    assert replay["first"]["code"].endswith("# fault")


class Adversarial(Network):
    """Two optimizers in manual optimization, of which the second one meets the fault."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.calls += 1
        optimizers: Any = self.optimizers()
        first, second = optimizers
        for optimizer, sign in ((first, 1.0), (second, -1.0)):
            self.toggle_optimizer(optimizer)
            y = self.critic(self.body(batch[0])).square() + 1.0
            factor = self.factor(len(y)) if optimizer is second else 1.0
            loss = sign * torch.sqrt(y * factor).mean()  # fault
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(one.parameters(), lr=1e-2) for one in (self.critic, self.body)]


def test_a_fault_after_another_optimizers_update_is_found(tmp_path: Path) -> None:
    """The second loss is computed with the weights that the first optimizer has made in the run."""
    replay = replay_of(Adversarial(), tmp_path, max_steps=20)

    assert (replay["status"], replay["reason"]) == ("reproduced", "")
    assert (replay["first"]["name"], replay["first"]["rows"]) == ("sqrt", [2])


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that all tensors lie on an accelerator, whose numbers are read after the update."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)


@pytest.mark.usefixtures("accelerator")
def test_weights_lost_before_the_fault_are_explained_by_a_replay(tmp_path: Path) -> None:
    """Without a sign before, the weights from before the update are gone; what would have kept them is said."""

    class Spoiled(Network):
        """Divides by zero at the weights that it has then."""

        mark = 0.0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss, weight = self.body(batch[0]).square().mean(), self.body[0].weight[0, 0]
            return loss / (weight - self.mark) if batch_idx == FAULT else loss

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.mark = float(self.body[0].weight.detach()[0, 0])

    replay = replay_of(Spoiled(), tmp_path)

    assert replay["status"] == "not-possible"
    assert replay["reason"].startswith("the weights are not finite any more")
    assert replay["reason"].endswith('on_explosion="skip" would have kept them')


@pytest.mark.usefixtures("accelerator")
def test_a_fault_that_does_not_depend_on_lost_weights_is_found_with_similar_ones(tmp_path: Path) -> None:
    """The step with its batch fails in the same way with weights of the scale that they had at the start."""

    class Spoiled(Network):
        """Divides the loss by the number of samples of a class that the batch does not hold."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss / (batch[1] == (7 if batch_idx == FAULT else batch[1])).sum()  # division

        def factor(self, size: int) -> Tensor:
            return torch.ones(size, 1)

    module = Spoiled()
    replay = replay_of(module, tmp_path)

    assert not torch.isfinite(module.body[0].weight).all()
    assert (replay["status"], replay["first"]["name"]) == ("reproduced", "div")
    assert replay["first"]["code"].endswith("# division")
    assert replay["notes"][0].startswith("the weights of the step are lost; it fails alike with others")
    assert not replay["activations"]


@pytest.mark.usefixtures("accelerator")
def test_after_a_warning_a_fault_is_found_although_the_weights_are_lost(tmp_path: Path) -> None:
    """The weights are then kept from before each update, as long as the incident is open."""

    class Warned(Network):
        """Has a spike some steps before the fault."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.calls += 1
            y = self.body(batch[0]).abs() + 1.0
            factor = torch.ones(len(y), 1)
            factor[2] = -1.0 if self.calls == 35 else 1.0
            return (1e3 if self.calls == 31 else 1.0) * torch.sqrt(y * factor).mean()  # fault

    module = Warned()
    monitor = GradientExplosionMonitor(report=tmp_path)
    fit(module, monitor, max_steps=40)

    assert not torch.isfinite(module.body[0].weight).all()
    assert monitor.findings[0].step == 30
    replay = json.loads((tmp_path / "diagnosis.json").read_text())["replay"]
    assert (replay["status"], replay["reason"]) == ("reproduced", "")
    assert (replay["first"]["name"], replay["first"]["rows"]) == ("sqrt", [2])


def test_weights_that_were_kept_are_released() -> None:
    """After each batch, in an incident too, the monitor holds no copy of the weights."""
    module = Network()
    module.body = nn.Sequential(nn.Linear(4, 300_000), nn.ReLU(), nn.Linear(300_000, 3))
    monitor = GradientExplosionMonitor(log_every_n_steps=0, report=False)
    held = Held(monitor)
    fit(module, monitor, held, max_steps=12)

    assert monitor.exploded
    weights = sum(one.nbytes for one in module.parameters())
    assert max(held.sizes) < 0.1 * weights


class Eventful(Network):
    """Draws random numbers of all kinds, and keeps metrics, averages and lists on itself."""

    def __init__(self, fault: bool = True) -> None:
        super().__init__()
        self.fails = fault
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.body[0] = torch.compile(self.body[0], backend="eager")
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
        self.average = nn.Linear(4, 8).requires_grad_(False)
        self.seen: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.calls += 1
        x = batch[0] + random.random() + float(np.random.rand()) + torch.rand(1, generator=self.generator)
        hidden = self.drop(self.norm(self.body[0](x)))
        with torch.no_grad():
            self.average.weight.mul_(0.9).add_(self.body[0].weight, alpha=0.1)
        y = self.body[2](hidden)
        self.accuracy(y, batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)
        loss = torch.sqrt((y.abs() + 1.0) * self.factor(len(y))).mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.seen.append(loss)
        return loss


def state_of(module: Any, trainer: pl.Trainer) -> dict[str, Any]:
    """Return all of a run that can be compared, bit for bit."""
    metrics = {name: str(one) for name, one in trainer.callback_metrics.items() if "gradexplode" not in name}
    return {
        **{name: one.numpy(force=True).tobytes() for name, one in module.state_dict().items()},
        "metrics": metrics,
        "calls": module.calls,
        "random": (random.getstate(), torch.get_rng_state().numpy().tobytes(), float(np.random.rand())),
        "losses": [str(one.item()) for one in getattr(module, "seen", ())],
        "generator": module.generator.get_state().numpy().tobytes() if hasattr(module, "generator") else None,
    }


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (Eventful, {}),
        (Eventful, {"accumulate_grad_batches": 2, "max_steps": 5}),
        (Eventful, {"precision": "bf16-mixed"}),
        (Adversarial, {"max_steps": 20}),
    ],
    ids=["eventful", "accumulated", "bfloat16", "two optimizers"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_is_the_same_with_and_without_a_replay(build: Any, settings: dict[str, Any]) -> None:
    """Weights, averages, metrics, counters, lists, losses and all random numbers agree bit for bit."""
    monitor = GradientExplosionMonitor(report=False)
    torch.manual_seed(2)
    watched = build()
    torch.manual_seed(2)
    alone = build()

    with_monitor = state_of(watched, fit(watched, monitor, **settings))
    without = state_of(alone, fit(alone, **settings))

    assert monitor.exploded
    assert with_monitor == without


class Resting(Network):
    """Has weights without a gradient, and an optimizer that divides by nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.body[2](torch.zeros(8, 8)) ** 2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3, eps=0.0)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_update_that_loses_the_weights_is_shown_with_the_optimizers_state(accumulate: int, tmp_path: Path) -> None:
    """The first step's weights are kept for each micro-batch, so that the weight before the update is known, too."""
    module = Resting()
    fit(module, GradientExplosionMonitor(report=tmp_path), max_steps=1, accumulate_grad_batches=accumulate)
    found = json.loads((tmp_path / "diagnosis.json").read_text())

    assert found["replay"]["status"] == "finite"
    fault = found["update_fault"]
    assert fault["parameter"] == "body.2.weight"
    assert isinstance(fault["weight_before"], float)
    assert (fault["gradient"], fault["state"]["exp_avg"], fault["state"]["exp_avg_sq"]) == (0.0, 0.0, 0.0)


@needs_graph_values
def test_a_step_that_no_replay_reproduces_is_explained_by_the_graph_of_its_loss(tmp_path: Path) -> None:
    """The step itself changes its batch; the operation is known without its line."""

    class Changing(Network):
        """Takes a root of a negative number at one batch."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            batch[0].mul_(1.5)
            return torch.pow(self.body(batch[0]).abs() + (-9.0 if batch_idx == 3 else 1.0), 1.5).mean()

    replay = replay_of(Changing(), tmp_path)

    assert (replay["status"], replay["first"]["name"], replay["first"]["line"]) == ("reproduced", "pow", None)
    assert any("could not be computed again" in note for note in replay["notes"])


def test_a_later_overflow_of_a_summed_loss_leaves_the_sum_as_the_cause() -> None:
    """The graph of the loss that is infinite at last shows the loss function, but not that it is a sum."""

    class Summed(pl.LightningModule):
        """A deep network that is trained with the sum of the errors, at the rate of a mean."""

        def __init__(self) -> None:
            super().__init__()
            layers: list[nn.Module] = [nn.Linear(64, 32)]
            for _ in range(9):
                layers += [nn.Tanh(), nn.Linear(32, 32)]
            self.body = nn.Sequential(*layers, nn.Linear(32, 1))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.mse_loss(self.body(batch[0]), batch[1], reduction="sum")

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    inputs = torch.randn(640, 64)
    loader = DataLoader(TensorDataset(inputs, 1.5 * inputs[:, :8].sum(1, keepdim=True).tanh()), batch_size=64)
    monitor = GradientExplosionMonitor(report=False)
    settings = {**QUIET, "max_steps": 40, "max_epochs": -1, "limit_train_batches": 10, "logger": False}
    pl.Trainer(**settings, callbacks=[monitor]).fit(Summed(), loader)
    diagnosis = monitor.diagnosis()

    assert diagnosis is not None
    assert "nonfinite-loss" in {finding.sign for finding in monitor.findings}
    assert diagnosis.causes[0].kind == "accumulated-gradients"


def test_data_in_an_object_without_methods_are_found(tmp_path: Path) -> None:
    """Its tensors are those of the batch, so that NaN in them comes from the data, and from no operation."""

    class Own(Network):
        """Takes batches that are objects with two tensors."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.body(batch.x) ** 2).mean()

        def train_dataloader(self) -> DataLoader[Any]:
            rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
            rows[8 * 3 + 2] = torch.nan

            def collate(samples: list[Any]) -> Slotted:
                return Slotted(torch.stack([row for (row,) in samples]), torch.ones(8))

            return DataLoader(TensorDataset(rows), batch_size=8, collate_fn=collate)

    monitor = GradientExplosionMonitor(report=tmp_path)
    fit(Own(), monitor)
    diagnosis = monitor.diagnosis()

    assert diagnosis is not None
    assert (diagnosis.causes[0].kind, diagnosis.causes[0].where) == ("nonfinite-input", 'batch["x"], row 2')


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_a_wrong_sign_of_the_gradient_is_named_whatever_the_rate(rate: float, tmp_path: Path) -> None:
    """Also where the weights before the first critical finding are not known, as that of a large update."""

    class Reversed(Network):
        """Regression with gradients of the wrong sign."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs = self.body(batch[0])
            if outputs.requires_grad:
                outputs.register_hook(torch.neg)
            return (outputs - batch[0][:, :3]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    torch.manual_seed(0)
    monitor = GradientExplosionMonitor(report=False)
    fit(Reversed(), monitor, max_steps=60, max_epochs=-1)
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "loss-without-floor"
    assert "look for a wrong sign" in diagnosis.remedies[0]


@pytest.mark.parametrize("factor", [1000.0, -20.0])
def test_gradients_that_a_hook_multiplies_are_unknown_with_the_factor(factor: float) -> None:
    """The overshoot is a consequence, and no targets move."""

    class Multiplied(Network):
        """Regression whose error gradients are multiplied between the loss and the network."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs = self.body(batch[0])
            if outputs.requires_grad:
                outputs.register_hook(lambda gradient: factor * gradient)
            return (outputs - batch[0][:, :3]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.3)

    torch.manual_seed(0)
    monitor = GradientExplosionMonitor(report=False)
    fit(Multiplied(), monitor, max_steps=60, max_epochs=-1)
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "unknown"
    assert f"gradients are {factor:.3g} times those of the loss" in diagnosis.causes[0].evidence[0]
