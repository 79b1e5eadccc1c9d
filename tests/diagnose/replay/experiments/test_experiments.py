"""The experiments measure what a plain computation with the same weights and rows measures."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lightning_gradexplode.diagnose.replay import ReplayStep, replay_step, run_experiments


def squared_error(model: Any, batch: Any, batch_idx: int) -> Any:
    return (model(batch["x"]) - batch["y"]).square().mean()


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@pytest.fixture
def batch() -> dict[str, Any]:
    torch.manual_seed(1)
    return {"x": torch.randn(8, 3), "y": torch.randn(8, 1), "names": list("abcdefgh")}


class TestLineSearch:
    def test_losses_along_an_update_are_those_of_the_weights_in_between(self, module: Any, batch: Any) -> None:
        """At each factor the loss is that of weights moved by hand, and the weights of the run stay."""
        before = {name: one.detach().clone() for name, one in module.named_parameters()}
        with torch.no_grad():
            module.weight.sub_(0.5)
            module.bias.add_(2.0)
        after = {name: one.detach().clone() for name, one in module.named_parameters()}

        found = run_experiments(ReplayStep(module, squared_error, batch), before=before).line_search

        assert [factor for factor, _ in found] == [0.0, 0.01, 0.1, 0.3, 1.0]
        for factor, loss in found:
            moved = {name: before[name] + factor * (after[name] - before[name]) for name in before}
            expected = (torch.func.functional_call(module, moved, batch["x"]) - batch["y"]).square().mean()
            assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert all(torch.equal(one, after[name]) for name, one in module.named_parameters())

    def test_an_update_that_lost_the_weights_is_measured_at_its_beginning(self, module: Any, batch: Any) -> None:
        """With weights of NaN after the step, the loss before it is finite all the same."""
        before = {name: one.detach().clone() for name, one in module.named_parameters()}
        with torch.no_grad():
            for weight in module.parameters():
                weight.fill_(math.nan)

        found = run_experiments(ReplayStep(module, squared_error, batch), before=before).line_search

        assert math.isfinite(found[0][1])
        assert all(math.isnan(loss) for _, loss in found[1:])

    def test_a_step_that_runs_its_own_backward_pass_is_measured(self) -> None:
        """In manual optimization the loss is what the backward pass was given; nothing after it runs."""

        class Manual(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.automatic_optimization = False
                self.body = nn.Linear(3, 1)

            def training_step(self, batch: Any, batch_idx: int) -> None:
                self.manual_backward(self.body(batch).square().mean())
                assert self.body.weight.grad is not None
                self.body.weight.grad.div_(2.0)

        manual, inputs = Manual(), torch.randn(4, 3)
        before = {name: one.detach() * 2.0 for name, one in manual.named_parameters()}
        step = ReplayStep(manual, lambda copy, one, index: copy.training_step(one, index), inputs)

        found = run_experiments(step, before=before).line_search

        assert found[0][1] == pytest.approx(4.0 * found[-1][1], rel=1e-4)


def step_with(sign: float, discount: float) -> Any:
    """Return a step whose hidden layer gets gradients of a sign, and whose targets follow its own outputs."""

    def step(model: Any, batch: Any, batch_idx: int) -> Any:
        hidden = model[0](batch["x"]).tanh()
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: sign * gradient)
        outputs = model[1](hidden)
        return (outputs - batch["y"] - discount * outputs.detach()).square().mean()

    return step


class TestSlopes:
    @pytest.mark.parametrize(
        ("sign", "discount", "whole", "hidden", "last"),
        [
            (1.0, 0.0, 1.0, None, None),
            (-1.0, 0.0, None, -1.0, 1.0),
            (1.0, 0.8, 0.2, 0.2, 0.2),
            (1.0, 1.5, -0.5, -0.5, -0.5),
        ],
    )
    def test_the_slope_along_the_gradients_shows_what_they_leave_out(
        self, batch: Any, sign: float, discount: float, whole: float | None, hidden: float | None, last: float | None
    ) -> None:
        """One of the true gradient; minus one behind a wrong sign; one minus the discount, with moving targets."""
        torch.manual_seed(0)
        module, function = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), step_with(sign, discount)
        function(module, batch, 0).backward()
        gradients = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
        norm = torch.stack([one.norm() for one in gradients.values()]).norm().item()
        step = ReplayStep(module, function, batch)

        found = run_experiments(step, replay_step(step), memory_grad_norm=norm, gradients=gradients)

        shares = dict(found.slope_ratios)
        assert whole is None or found.slope_ratio == pytest.approx(whole, abs=0.01)
        assert shares.get("0.weight") == (None if hidden is None else pytest.approx(hidden, abs=0.01))
        assert shares.get("1.weight") == (None if last is None else pytest.approx(last, abs=0.01))

    @pytest.mark.parametrize("factor", [20.0, 1e3, 1e5])
    def test_the_slope_along_gradients_that_are_multiplied_is_measured_over_a_longer_distance(
        self, batch: Any, factor: float
    ) -> None:
        """Over the distance for a gradient of that size, the loss changes by less than its rounding."""
        torch.manual_seed(0)
        module, function = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)), step_with(factor, 0.0)
        function(module, batch, 0).backward()
        gradients = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
        norm = torch.stack([one.norm() for one in gradients.values()]).norm().item()
        step = ReplayStep(module, function, batch)

        found = run_experiments(step, replay_step(step), memory_grad_norm=norm, gradients=gradients)

        shares = dict(found.slope_ratios)
        assert shares["0.weight"] == pytest.approx(1 / factor, rel=0.03)
        assert shares["1.weight"] == pytest.approx(1.0, rel=0.03)

    def test_gradients_of_complex_parameters_have_a_slope(self, batch: Any) -> None:
        """Their imaginary parts count, too."""

        class Turned(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.tensor([[0.3 + 0.5j], [0.2 - 0.7j], [1j]]))

            def forward(self, x: Tensor) -> Tensor:
                return (x.to(self.weight.dtype) @ self.weight).abs().square()

        module = Turned()
        squared_error(module, batch, 0).backward()
        gradient = module.weight.grad
        assert gradient is not None
        step, norm = ReplayStep(module, squared_error, batch), float(gradient.norm())

        found = run_experiments(step, replay_step(step), memory_grad_norm=norm, gradients={"weight": gradient})

        assert found.slope_ratio == pytest.approx(1.0, abs=0.01)

    def test_gradients_that_were_clipped_since_are_not_measured(self, module: Any, batch: Any) -> None:
        """Their norm is no longer the one that was measured, so that they may be those of another step."""
        squared_error(module, batch, 0).backward()
        gradients = {name: one.grad for name, one in module.named_parameters()}
        step = ReplayStep(module, squared_error, batch)

        found = run_experiments(step, replay_step(step), memory_grad_norm=1e3, gradients=gradients)

        assert (found.slope_ratio, found.slope_ratios) == (None, ())


class TestRows:
    def test_the_step_is_finite_without_the_rows_at_fault(self, module: Any, batch: Any) -> None:
        """Rows with NaN are left out of every field; the gradient is that of the other rows."""
        batch["x"][2] = math.nan
        batch["x"][5] = math.nan
        step = ReplayStep(module, squared_error, batch)

        found = run_experiments(step, replay_step(step, failed="loss"))

        kept = torch.tensor([0, 1, 3, 4, 6, 7])
        loss = (module(batch["x"][kept]) - batch["y"][kept]).square().mean()
        loss.backward()
        norm = torch.cat([one.grad.flatten() for one in module.parameters()]).norm()
        assert (found.rows_removed, found.finite_without_rows) == ((2, 5), True)
        assert found.grad_norm_without_rows == pytest.approx(norm.item())

    def test_a_row_that_a_reduction_hides_is_searched(self, module: Any, batch: Any) -> None:
        """The loss is one number and names no row; leaving out halves finds row 6."""
        batch["y"][6] = -1e30

        def step(model: Any, one: Any, _: int) -> Any:
            return ((model(one["x"]) - one["y"]).sum() * 1e10).exp().square() - 1.0

        replay = replay_step(ReplayStep(module, step, batch), failed="loss")
        assert replay.first is not None
        assert replay.first.rows == ()

        found = run_experiments(ReplayStep(module, step, batch), replay)

        assert (found.rows_removed, found.finite_without_rows) in (((6,), True), ((), None))

    def test_a_fault_of_all_rows_names_none(self, module: Any, batch: Any) -> None:
        """Where the step fails without any of its rows, no row is reported."""

        def step(model: Any, one: Any, _: int) -> Any:
            total = model(one["x"]).sum()
            return (total - total) / (total - total)

        step_ = ReplayStep(module, step, batch)

        found = run_experiments(step_, replay_step(step_, failed="loss"))

        assert (found.rows_removed, found.finite_without_rows) == ((), None)

    def test_rows_are_left_out_of_fields_of_every_kind(self, module: Any) -> None:
        """Lists of tensors, packed sequences, strings and fields with the batch in the second dimension."""
        seen: list[Any] = []
        fields = {
            "x": torch.arange(12.0).reshape(4, 3),
            "images": [torch.zeros(size) for size in (5, 6, 7, 9)],
            "packed": pack_sequence([torch.full((size,), float(size)) for size in (3, 1, 2, 4)], enforce_sorted=False),
            "names": ("a", "b", "c", "d"),
            "time_first": torch.arange(8.0).reshape(2, 4),
            "scale": torch.tensor(3.0),
        }

        def step(model: Any, batch: Any, _: int) -> Any:
            seen.append(batch)
            return model(batch["x"]).sum()

        run_experiments(ReplayStep(module, step, fields), rows=(1,))

        batch = seen[-1]
        assert batch["x"][:, 0].tolist() == [0.0, 6.0, 9.0]
        assert [len(one) for one in batch["images"]] == [5, 7, 9]
        assert batch["packed"].batch_sizes.tolist() == [3, 3, 2, 1]
        assert list(batch["names"]) == ["a", "c", "d"]
        assert batch["time_first"].tolist() == [[0.0, 2.0, 3.0], [4.0, 6.0, 7.0]]
        assert batch["scale"] == 3.0


class TestHalfPrecision:
    def test_an_overflow_of_half_weights_is_finite_in_float32(self) -> None:
        """Weights, buffers, inputs and casts within the step are float32 in the experiment."""
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half()

        def step(model: Any, batch: Tensor, _: int) -> Any:
            return (model(batch.half()) * 6e4).square().float().mean()

        step_ = ReplayStep(module, step, torch.randn(5, 3))
        replay = replay_step(step_, failed="loss")

        found = run_experiments(step_, replay)

        assert replay.half_precision
        assert found.finite_in_float32 is True
        assert found.float32_loss is not None
        assert math.isfinite(found.float32_loss)
        assert all(one.dtype is torch.float16 for one in module.parameters())

    @pytest.mark.parametrize("inside", [True, False])
    def test_an_overflow_under_autocast_is_finite_in_float32(self, module: Any, inside: bool) -> None:
        """Autocast is left out, whether the loop or the step itself sets it."""

        def step(model: Any, batch: Tensor, _: int) -> Any:
            with torch.autocast("cpu", torch.float16) if inside else nullcontext():
                return (model(batch) * 0.0 + 6e4).mul(2.0).mean()

        context = nullcontext if inside else (lambda: torch.autocast("cpu", torch.float16))
        step_ = ReplayStep(module, step, torch.randn(5, 3), context=context)

        found = run_experiments(step_, replay_step(step_, failed="loss"))

        assert found.finite_in_float32 is True
        assert found.float32_loss == pytest.approx(1.2e5)

    def test_a_fault_in_float32_is_not_computed_again(self, module: Any, batch: Any) -> None:
        """The question does not arise where no operation was in half precision."""
        batch["x"][2] = math.nan
        step = ReplayStep(module, squared_error, batch)

        assert run_experiments(step, replay_step(step, failed="loss")).finite_in_float32 is None


class TestGradientNorm:
    def test_the_norm_of_the_batch_alone_stands_beside_that_in_memory(self, module: Any, batch: Any) -> None:
        """Gradients that were not cleared are larger than those of the batch."""
        for _ in range(3):
            squared_error(module, batch, 0).backward()
        held = torch.cat([one.grad.flatten() for one in module.parameters()]).norm().item()

        found = run_experiments(ReplayStep(module, squared_error, batch), memory_grad_norm=held)

        assert found.memory_grad_norm == held
        assert found.batch_grad_norm == pytest.approx(held / 3.0, rel=1e-5)

    def test_the_scale_of_the_loss_is_taken_out(self, module: Any, batch: Any) -> None:
        """The norm is that of the unscaled loss."""
        plain = replay_step(ReplayStep(module, squared_error, batch)).grad_norm

        scaled = replay_step(ReplayStep(module, squared_error, batch, loss_scale=1024.0)).grad_norm

        assert scaled == pytest.approx(plain)


def test_what_fails_is_left_out(module: Any, batch: Any) -> None:
    """A step that raises gives an empty record."""

    def raises(model: Any, one: Any, _: int) -> Any:
        raise KeyError("missing")

    found = run_experiments(ReplayStep(module, raises, batch), before=dict(module.named_parameters()))

    assert (found.line_search, found.batch_grad_norm) == ((), None)


class Repeated(nn.Module):
    """Applies a matrix forty times, to the state or to what is added to it."""

    def __init__(self, is_added: bool) -> None:
        super().__init__()
        self.is_added = is_added
        self.matrix = nn.Parameter(2.0 * torch.eye(6))

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(40):
            state = state @ self.matrix + (state if self.is_added else 0.0)
        return state


@pytest.mark.parametrize(("is_added", "calm"), [(False, "orthogonal"), (True, "small")])
def test_the_start_of_a_repeated_matrix_is_tried(is_added: bool, calm: str) -> None:
    """An orthogonal one keeps the length of a state, a small one what it is added to; the run's matrix stays."""
    torch.manual_seed(0)
    module, state = Repeated(is_added), torch.randn(8, 6)
    step = ReplayStep(module, lambda model, batch, _: model(batch).square().mean(), state)

    found = run_experiments(step, repeated=["matrix", "another"]).starts

    norms: dict[str, float] = {one.start: one.grad_norm for one in found}
    assert {one.parameter for one in found} == {"matrix"}
    assert norms[calm] < 1000
    assert (norms["orthogonal"] > 1e6) is is_added
    assert torch.equal(module.matrix, 2.0 * torch.eye(6))
    assert module.matrix.grad is None
