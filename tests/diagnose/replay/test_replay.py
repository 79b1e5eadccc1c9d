"""The replay finds the operation that a failing step is known to begin with."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradexplode.diagnose.replay import ReplayStep, replay_step
from lightning_gradexplode.records import Replay


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.drop(torch.relu(self.norm(self.body(x))))
        output: Tensor = self.head(hidden)
        return output


def replayed(run_step: Any, batch: Any, failed: Any, module: nn.Module | None = None, **settings: Any) -> Replay:
    return replay_step(ReplayStep(module or Network(), run_step, batch, **settings), failed=failed)


def test_a_logarithm_of_a_negative_number_is_named_with_its_line_and_row() -> None:
    """The first NaN is made by ``log`` in this file, at row 3."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        offset = torch.zeros(len(batch), 1)
        offset[3] = -100.0
        return torch.log(model(batch).square() + 1.0 + offset).mean()

    replay = replayed(step, torch.randn(6, 4), "loss")

    assert replay.status == "reproduced"
    assert replay.first is not None
    assert (replay.first.name, replay.first.result, replay.first.rows) == ("log", "nan", (3,))
    assert replay.first.code == "return torch.log(model(batch).square() + 1.0 + offset).mean()"


@pytest.mark.parametrize("is_swapped", [False, True])
def test_the_targets_of_a_symmetric_loss_are_those_without_a_gradient(is_swapped: bool) -> None:
    """``mse_loss(target, output)`` is as common as the order in torch's documentation."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        pair = model(batch), torch.full((6, 2), 1e20)
        return functional.mse_loss(*(pair[::-1] if is_swapped else pair))

    (term,) = replayed(step, torch.randn(6, 4), "loss").losses

    assert term.inputs[1].greatest == pytest.approx(1e20)


def test_an_infinity_hidden_by_where_is_named_beside_the_slope_it_spoils() -> None:
    """The value of ``log(0)`` is masked, its slope is 0/0: both are reported."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        share = torch.sigmoid(model(batch)) * torch.tensor([1.0, 0.0])
        return torch.where(share > 0, share.log(), 0.0).mean()

    replay = replayed(step, torch.randn(6, 4), "gradient")

    assert replay.status == "reproduced"
    assert replay.first is not None
    assert replay.hidden is not None
    assert (replay.first.phase, replay.first.node) == ("backward", "LogBackward0")
    assert (replay.hidden.phase, replay.hidden.name, replay.hidden.result) == ("forward", "log", "-inf")
    assert replay.first.line == replay.hidden.line


def test_an_infinity_that_is_filled_in_is_no_fault_and_what_divides_it_is() -> None:
    """Scores that are left out are divided by a learned temperature, whose gradient is 0 * inf."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        scores = model(batch)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[:, 0] = True
        scores = scores.masked_fill(mask, float("-inf")) / model.head.weight.abs().mean()
        return functional.cross_entropy(scores, torch.ones(len(scores), dtype=torch.long))

    replay = replayed(step, torch.randn(6, 4), "gradient")

    assert replay.status == "reproduced"
    assert replay.hidden is None
    assert replay.first is not None
    assert (replay.first.phase, replay.first.node) == ("backward", "DivBackward0")


@pytest.mark.parametrize("way", ["masked_fill", "assignment"])
def test_an_infinity_that_is_filled_in_and_reaches_the_loss_is_named(way: str) -> None:
    """Label smoothing gives a share to each class, also to one whose probability is zero."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        scores = model.body(batch)
        if way == "assignment":
            scores[:, 0] = -math.inf
        else:
            scores = scores.masked_fill(torch.arange(scores.shape[1]) == 0, -math.inf)
        return functional.cross_entropy(scores, torch.ones(len(scores), dtype=torch.long), label_smoothing=0.1)

    replay = replayed(step, torch.randn(6, 4), "loss")

    assert replay.first is not None
    assert replay.first.result == "-inf"
    assert "math.inf" in (replay.first.code or "")


def test_an_exponential_function_that_others_overflow_with_is_named_beside_them() -> None:
    """The square of exp(60) is infinite in float32; the line of the exponential function is the one to bound."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        large = torch.exp(model(batch) * 0.0 + 60.0)
        return large.square().mean()

    replay = replayed(step, torch.randn(6, 4), "loss")

    assert replay.first is not None
    assert replay.first.name == "pow"
    assert replay.grown is not None
    assert (replay.grown.name, replay.grown.result) == ("exp", "large")
    assert replay.grown.code == "large = torch.exp(model(batch) * 0.0 + 60.0)"
    assert replay.grown.inputs[0].at_fault == 60.0


def test_a_mask_of_infinities_is_no_fault_and_a_fully_masked_row_is() -> None:
    """Row 2 of the scores is masked from end to end: its softmax is 0/0."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        scores = model.body(batch)
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[:, 0] = True
        mask[2] = True
        return functional.softmax(scores.masked_fill(mask, float("-inf")), dim=1).square().sum()

    replay = replayed(step, torch.randn(6, 4), "loss")

    assert replay.first is not None
    assert (replay.first.name, replay.first.rows) == ("_softmax", (2,))


def test_not_a_number_in_the_batch_is_named_with_its_field_and_rows() -> None:
    """No operation is at fault: the batch held NaN."""
    batch = {"image": torch.randn(6, 4), "index": torch.arange(6)}
    batch["image"][4, 1] = float("nan")

    replay = replayed(lambda model, one, _: model(one["image"]).sum(), batch, "loss")

    assert (replay.status, replay.first) == ("reproduced", None)
    assert (replay.source, replay.source_name, replay.source_rows) == ("batch", "image", (4,))


def _through_layers(model: Network, batch: dict[str, Tensor]) -> Tensor:
    outputs: Tensor = model(batch["mesh"] / 2.0)
    return outputs


def _only_in_the_loss(model: Network, batch: dict[str, Tensor]) -> Tensor:
    outputs: Tensor = model(batch["image"])
    return (outputs - batch["mesh"][:, :2]).abs()


def _without_layers(model: Network, batch: dict[str, Tensor]) -> Tensor:
    return batch["mesh"] @ model.body.weight.T


@pytest.mark.parametrize(
    ("compute", "expected"), [(_through_layers, True), (_only_in_the_loss, False), (_without_layers, None)]
)
def test_whether_a_field_reaches_the_network_is_known_if_it_has_layers(compute: Any, expected: bool | None) -> None:
    """A field that only the loss reads is a target, whatever it is called."""
    batch = {"image": torch.randn(6, 4), "mesh": torch.randn(6, 4)}
    batch["mesh"][3, 0] = float("nan")

    replay = replayed(lambda model, one, _: compute(model, one).sum(), batch, "loss")

    assert (replay.source_name, replay.source_reaches_layers) == ("mesh", expected)


def test_rows_are_those_of_what_was_computed_from_the_batch() -> None:
    """A weight with as many rows as the batch has is no part of it; the error gradient of a row is."""

    def regularized(model: Any, batch: Tensor, batch_idx: int) -> Any:
        return model(batch).sum() + torch.log(-model.body.weight.square()).sum()

    replay = replayed(regularized, torch.randn(8, 4), "loss")
    assert replay.first is not None
    assert (replay.first.name, replay.first.rows) == ("log", ())

    def rooted(model: Any, batch: Tensor, batch_idx: int) -> Any:
        offset = torch.ones(8, 1)
        offset[5] = 0.0
        return (model(batch).abs() * offset).sqrt().sum()

    replay = replayed(rooted, torch.randn(8, 3), "gradient", nn.Linear(3, 8))
    assert replay.first is not None
    assert (replay.first.phase, replay.first.rows) == ("backward", (5,))


PERMUTATION = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda x: x + 0.0, (2,)),
        (lambda x: x[:, [3, 1, 0, 2]], (2,)),
        (lambda x: x.gather(1, torch.zeros(8, 4, dtype=torch.long)), (2,)),
        (lambda x: x @ torch.eye(4), (2,)),
        (lambda x: x.sort(dim=1)[0], (2,)),
        (lambda x: torch.cat([x, x], dim=1), (2,)),
        (lambda x: torch.stack([x.sum(1), x.sum(1)], dim=1), (2,)),
        (lambda x: x[PERMUTATION], ()),
        (lambda x: x[x[:, 0].argsort()], ()),
        (lambda x: torch.minimum(x, x[PERMUTATION]), ()),
        (lambda x: x.flip(0), ()),
        (lambda x: x.roll(1, dims=0), ()),
        (lambda x: x.sort(dim=0)[0], ()),
        (lambda x: torch.zeros(8, 4).index_add(0, PERMUTATION, x), ()),
        (lambda x: torch.zeros(8, 4).scatter_add(0, PERMUTATION[:, None].expand(8, 4), x), ()),
        (lambda x: torch.eye(8)[PERMUTATION] @ x, ()),
        (lambda x: torch.cat([x[4:], x[:4]]), ()),
        (lambda x: torch.linalg.eigvalsh(x @ x.T)[:, None], ()),
    ],
)
def test_rows_are_named_only_while_they_are_in_their_order(change: Any, rows: tuple[int, ...]) -> None:
    """What was permuted, sorted or summed up by another index within the batch has rows that are no samples."""
    batch = torch.rand(8, 4) + 1.0
    batch[2] = 0.0

    def step(model: Any, one: Tensor, batch_idx: int) -> Any:
        return torch.log(change(one)).sum() + 0.0 * model(one).sum()

    first = replayed(step, batch, "loss").first
    assert first is not None
    assert (first.name, first.rows) in {("log", rows), ("add", rows)}


def test_rows_of_a_table_are_those_that_look_it_up() -> None:
    """A row of the batch that points to a zero is named, and not the row of the table."""
    batch = torch.tensor([3, 3, 3, 3, 3, 0, 3, 3])
    table = torch.tensor([0.0, 1.0, 1.0, 1.0])

    def step(model: Any, one: Tensor, batch_idx: int) -> Any:
        return torch.log(table[one]).sum() + model(torch.ones(8, 4)).sum()

    first = replayed(step, batch, "loss").first
    assert first is not None
    assert first.rows == (5,)


def test_rows_of_a_transposed_square_are_not_named() -> None:
    """With as many features as rows, the first dimension of a transposed tensor has the right size by chance."""
    batch = torch.ones(4, 4)
    batch[2, 1] = -1.0

    def step(model: Any, one: Tensor, batch_idx: int) -> Any:
        return torch.log(one.t()).sum() + model(one).sum()

    first = replayed(step, batch, "loss").first
    assert first is not None
    assert first.rows == ()


@pytest.mark.parametrize("writes", [False, True])
def test_a_buffer_that_was_not_finite_counts_unless_the_step_itself_writes_to_it(writes: bool) -> None:
    """Buffers are seen as they are at the end of a step, so that one which it changes may have been finite."""
    module: Any = Network()
    module.register_buffer("scale", torch.tensor([1.0, float("nan")]))

    def step(model: Any, batch: Tensor, batch_idx: int) -> Any:
        loss = (model(batch) * model.scale).mean()
        if writes:
            model.scale.mul_(0.9)
        return loss

    replay = replayed(step, torch.randn(6, 4), "loss", module)
    assert (replay.source, replay.source_name) == ("buffer", "scale")
    assert replay.status == ("not-reproduced" if writes else "reproduced")


def step_from(path: Path, text: str) -> Any:
    """Write a module with a function ``step``, and return the function."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(text, str(path), "exec"), names)
    return names["step"]


def test_the_line_is_that_of_the_users_call_into_an_installed_package(tmp_path: Path) -> None:
    """A package in ``site-packages`` is passed over, unless the step itself belongs to it."""
    site = tmp_path / "lib" / "site-packages"
    inner = step_from(site / "layers" / "log.py", "def step(x):\n    return (-x).log()\n")
    own = step_from(site / "project" / "model.py", "def step(model, batch, i):\n    return model.inner(batch).mean()\n")
    module: Any = Network()
    module.inner = inner

    def step(model: Any, batch: Tensor, batch_idx: int) -> Any:
        return model.inner(batch).mean()

    first = replayed(step, torch.ones(6, 4), "loss", module).first
    assert first is not None
    assert first.code == "return model.inner(batch).mean()"
    assert first.file is not None
    assert first.file.endswith("test_replay.py")
    first = replayed(own, torch.ones(6, 4), "loss", module).first
    assert first is not None
    assert (first.file, first.line) == ("model.py", 2)


def test_code_without_a_text_is_passed_over() -> None:
    """Of what ``exec`` runs there is no line to show, so that the line which calls it is named."""
    names: dict[str, Any] = {}
    exec("def negative_log(x):\n    return (-x).log()\n", names)

    def step(model: Any, batch: Tensor, batch_idx: int) -> Any:
        return names["negative_log"](batch).mean()

    first = replayed(step, torch.ones(6, 4), "loss").first
    assert first is not None
    assert first.code == 'return names["negative_log"](batch).mean()'


def test_a_notebooks_cell_is_called_so(tmp_path: Path) -> None:
    """The temporary file of a notebook's cell is reported as "notebook cell"."""
    cell = tmp_path / "ipykernel_17" / "123456.py"
    step = step_from(cell, "def step(model, batch, i):\n    return (-batch).log().mean()\n")

    first = replayed(step, torch.ones(6, 4), "loss").first
    assert first is not None
    assert (first.file, first.line, first.code) == ("notebook cell", 2, "return (-batch).log().mean()")


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-x.abs())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_named_with_the_line_that_calls_it() -> None:
    """What runs inside of it has no line of its own."""
    module: Any = Network()
    module.inner = torch.jit.script(Logarithm())

    def step(model: Any, batch: Tensor, batch_idx: int) -> Any:
        return model.inner(model(batch)).mean()

    first = replayed(step, torch.ones(6, 4), "loss", module).first
    assert first is not None
    assert (first.name, first.module) == ("log", "inner")
    assert first.code == "return model.inner(model(batch)).mean()"


def test_a_step_that_ends_the_program_ends_only_its_replay() -> None:
    """As a step does that exits where its loss is not finite; what it was is named all the same."""

    def step(model: Network, batch: Tensor, batch_idx: int) -> Tensor:
        loss = torch.log(model(batch).square() - 100.0).mean()
        if not math.isfinite(loss.item()):
            sys.exit(1)
        return loss

    replay = replayed(step, torch.randn(6, 4), "exception")
    assert replay.status == "reproduced"
    assert replay.first is not None
    assert replay.first.name == "log"
