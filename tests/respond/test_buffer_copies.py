"""Running averages after a batch whose update was held back."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.respond.buffer_copies import BufferCopies
from tests.respond.test_whole_runs import fit
from tests.runs.models import Manual, Regression
from tests.runs.probe import QUIET


class Normalized(Regression):
    """A network with batch normalization, some of whose inputs are multiplied by a value that is not finite.

    Args:
        factors: By batch.
        layers: The network.
    """

    def __init__(self, factors: dict[int, float], layers: nn.Module | None = None) -> None:
        torch.manual_seed(0)
        super().__init__(
            layers=layers
            or nn.Sequential(
                nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 1)
            )
        )
        self.factors = factors
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss."""
        inputs, targets = batch
        factor = self.factors.get(self.seen, 1.0)
        self.seen += 1
        return self.loss((inputs * factor, targets))


def buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers by name."""
    return dict(module.named_buffers())


@pytest.mark.parametrize("response", ["skip", "reduce-lr", "rollback", ["checkpoint", "skip"]])
@pytest.mark.parametrize("bad", [{0: float("nan")}, {4: float("inf"), 5: float("nan")}, {7: float("-inf")}])
def test_running_averages_stay_finite(response: Any, bad: dict[int, float], tmp_path: Any) -> None:
    """Whichever response holds the update back, and also at the very first step."""
    module = Normalized(bad)
    fit(module, response, max_steps=12, max_epochs=3, default_root_dir=tmp_path)
    assert all(bool(torch.isfinite(one).all()) for one in module.buffers())


def test_a_skipped_batch_leaves_no_trace_in_the_module_that_it_broke() -> None:
    """The averages are bit for bit those of a run that never saw the batch, the counts of batches too."""

    class Leaves(Normalized):
        def train_dataloader(self) -> Any:
            batches: Any = list(super().train_dataloader())
            kept: Any = [batch for number, batch in enumerate(batches) if number != 5 or 5 in self.factors]
            return DataLoader(kept, batch_size=None)

    seen, spared = Leaves({5: float("nan")}), Leaves({})
    fit(seen, "skip", max_steps=8, max_epochs=1)
    fit(spared, "skip", max_steps=7, max_epochs=1)
    assert all(torch.equal(buffers(seen)[name], one) for name, one in buffers(spared).items())


def test_an_accumulation_window_goes_back_to_its_start() -> None:
    """A NaN in the first batch of a window is not taken for the state before it."""
    module = Normalized({3: float("nan")})
    fit(module, "skip", max_steps=8, max_epochs=9, accumulate_grad_batches=2)
    assert all(bool(torch.isfinite(one).all()) for one in module.buffers())


def test_averages_that_were_frozen_at_first_are_restored() -> None:
    """Normalization that is thawed later, as in fine-tuning, is protected too."""

    class Thaws(Normalized):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.layers.train(self.seen > 2)

    module = Thaws({6: float("nan")})
    fit(module, "skip", max_steps=8, max_epochs=1)
    assert all(bool(torch.isfinite(one).all()) for one in module.buffers())


def test_other_buffers_than_those_that_broke_are_not_touched() -> None:
    """A queue that the user's code writes to goes on, also at a skipped step."""

    class Counts(Normalized):
        average: Tensor
        count: Tensor

        def __init__(self) -> None:
            super().__init__({5: float("nan")})
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.register_buffer("average", torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.count += 1
            self.average = self.average * 0.9 + 0.1  # replaced, not written to
            return super().training_step(batch, batch_idx)

    module = Counts()
    fit(module, "skip", max_steps=8, max_epochs=1)
    assert int(module.count) == 8
    assert float(module.average) == pytest.approx(1 - 0.9**8)


def test_a_graph_that_is_used_again_in_the_same_batch_is_not_broken() -> None:
    """With two optimizers the second backward pass may need the buffers as the forward pass left them."""

    class Adversaries(Manual):
        layers: Any

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
            self.seen = 0

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers: Any = self.optimizers()
            first, second = optimizers
            self.seen += 1
            loss = self.loss(batch) * (float("nan") if self.seen == 4 else 1.0)
            first.zero_grad()
            second.zero_grad()
            self.manual_backward(loss, retain_graph=True)
            first.step()
            self.manual_backward(self.layers[1].running_mean.sum() * 0.0 + loss * 0.5)
            second.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.layers[place].parameters(), lr=0.0) for place in (0, 2)]

    module = Adversaries()
    trainer = fit(module, "skip", max_steps=16, max_epochs=2)
    assert trainer.global_step == 16
    assert all(bool(torch.isfinite(one).all()) for one in module.buffers())


def test_a_buffer_without_a_copy_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be restored is said once, with its name."""

    class Late(Normalized):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.seen >= 5:
                self.register_buffer("late", torch.full((2,), float("nan")))
            return super().training_step(batch, batch_idx)

    module = Late({5: float("nan"), 6: float("nan")})
    fit(module, "skip", max_steps=8, max_epochs=1)
    (line,) = [line for line in caplog.messages if "there is no copy" in line]
    assert "late" in line


def test_nothing_is_restored_without_a_remedy() -> None:
    """A run that only warns keeps every bit of what its forward passes wrote."""
    module, plain = Normalized({5: float("nan")}), Normalized({5: float("nan")})
    monitor = GradientExplosionMonitor(on_explosion="warn", report=False)
    pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False, callbacks=[monitor]).fit(module)
    pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False).fit(plain)
    for name, one in buffers(plain).items():
        assert torch.equal(one.nan_to_num(7.0), buffers(module)[name].nan_to_num(7.0))


def test_copies_follow_buffers_that_grow_and_hold_only_what_changes() -> None:
    """A constant is dropped after the first step; another shape or kind is copied anew."""
    module: Any = nn.Module()
    module.register_buffer("constant", torch.ones(4))
    module.register_buffer("running", torch.ones(2))
    module.register_buffer("nothing", None)
    copies = BufferCopies(module)
    copies.start()
    module.running.add_(1.0)
    copies.update()
    module.running = torch.full((3,), 5.0, dtype=torch.float64)
    copies.update()
    module.running[1] = float("nan")
    module.constant[0] = float("nan")
    assert copies.restore() == (["running"], ["constant"])
    assert module.running.tolist() == [5.0] * 3


def test_buffers_that_cannot_be_compared_are_left_alone() -> None:
    """A sparse one, and a constant that is NaN, are no reason to lose the protection of the others."""

    class Odd(Normalized):
        def __init__(self) -> None:
            super().__init__({5: float("nan")})
            self.register_buffer("sparse", torch.eye(3).to_sparse())
            self.register_buffer("complex", torch.full((2,), complex(float("nan"), 0.0)))

    module = Odd()
    fit(module, "skip", max_steps=8, max_epochs=1)
    assert all(bool(torch.isfinite(one).all()) for name, one in module.named_buffers() if "running" in name)


def test_weights_that_are_lost_after_all_are_named_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """One line at the end of the fit names the first of them."""

    class Loses(Normalized):
        def on_train_batch_end(self, *arguments: Any) -> None:
            if self.seen == 8:
                with torch.no_grad():
                    next(self.parameters()).fill_(float("nan"))

    fit(Loses({}), "skip", max_steps=8, max_epochs=1)
    (line,) = [line for line in caplog.messages if "at the end of the fit 1 parameters are not finite" in line]
    assert "layers.0.weight" in line


@pytest.mark.parametrize("response", ["warn", "skip", "rollback"])
@pytest.mark.parametrize("bad", [1, 9, 19])
def test_running_averages_that_overflow_are_named_and_restored(
    response: str, bad: int, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Inputs of 1e25 overflow the variance, and the loss, which is divided by the batch's own, stays finite."""
    layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    module = Normalized({bad: 1e25}, layers)
    with caplog.at_level("WARNING", "lightning_gradexplode"):
        fit(module, response, max_steps=20, max_epochs=3, default_root_dir=tmp_path)
    (line,) = [line for line in caplog.messages if "buffers that training changes" in line]
    assert "layers.1.running_var" in line
    averages = dict(layers.named_buffers())
    assert bool(torch.isfinite(averages["1.running_var"]).all()) == (response != "warn")
    assert ("restored" in line) == (response != "warn")


@pytest.mark.skipif(not hasattr(pl.callbacks, "WeightAveraging"), reason="Lightning before 2.6")
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("bad", [0, 4, 11])
def test_averages_of_buffers_stay_finite(bad: int, is_first: bool, tmp_path: Any) -> None:
    """What a callback has averaged before the buffers were restored is restored, too; it ends in the model."""
    decayed: Any = get_ema_avg_fn  # without annotations of its own
    averaging = pl.callbacks.WeightAveraging(use_buffers=True, avg_fn=decayed(0.9))
    module = Normalized({bad: float("nan")})
    monitor = GradientExplosionMonitor(on_explosion="skip", report=False)
    callbacks: list[pl.Callback] = [monitor, averaging] if is_first else [averaging, monitor]
    pl.Trainer(**{**QUIET, "max_steps": 12, "max_epochs": 3}, logger=False, callbacks=callbacks).fit(module)
    assert all(bool(torch.isfinite(one).all()) for one in [*module.parameters(), *module.buffers()])


class Tracks(Normalized):
    """Keeps numbers of its own in buffers: an average of squares, an unused one, and a lowest loss.

    Args:
        bad: What the average of a step is multiplied by.
        resets: Whether the lowest loss is set to infinity now and then, which is meant.
    """

    def __init__(self, bad: dict[int, float], resets: bool = False) -> None:
        super().__init__({}, nn.Sequential(nn.Linear(6, 1)))
        self.bad, self.resets = bad, resets
        self.register_buffer("squares", torch.zeros(6))
        self.register_buffer("constant", torch.full((2,), float("inf")))
        self.register_buffer("lowest", torch.full((3,), float("inf")))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Follow the inputs; what overflows there is in no loss and in no gradient."""
        factor = self.bad.get(self.seen, 1.0)
        self.seen += 1
        self.get_buffer("squares").mul_(0.9)[2] += factor**2 * 0.1
        self.get_buffer("lowest").fill_(float("inf") if self.resets and self.seen % 7 == 0 else 1.0)
        return self.loss(batch)


@pytest.mark.parametrize("response", ["warn", "skip"])
def test_any_buffer_that_training_changes_is_named_when_it_overflows(
    response: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only running averages of normalization; it is restored where a response acts."""
    module = Tracks({40: 1e25})
    with caplog.at_level("WARNING", "lightning_gradexplode"):
        fit(module, response, max_steps=70, max_epochs=20, default_root_dir=tmp_path)
    (line,) = [line for line in caplog.messages if "buffers that training changes" in line]
    assert "not finite: squares;" in line
    assert bool(torch.isfinite(module.get_buffer("squares")).all()) == (response == "skip")


def test_a_buffer_that_is_reset_to_infinity_is_not_lost(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A lowest loss begins again at infinity by intent."""
    with caplog.at_level("WARNING", "lightning_gradexplode"):
        fit(Tracks({}, resets=True), "skip", max_steps=70, max_epochs=20, default_root_dir=tmp_path)
    assert "buffers" not in caplog.text


def test_a_mask_of_infinities_is_no_lost_buffer(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What was not finite from the start is not named when an update is held back."""
    module = Normalized({3: float("nan")})
    module.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    with caplog.at_level("WARNING", "lightning_gradexplode"):
        fit(module, "skip", max_steps=6, default_root_dir=tmp_path)
    assert "layers.1.running_mean" in caplog.text
    assert "mask" not in caplog.text
