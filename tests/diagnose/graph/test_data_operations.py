"""The operation that makes data non-finite is observed while a loop runs, which changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lightning_gradexplode.diagnose.graph import DataOperations, is_the_same_within_a_mode
from lightning_gradexplode.diagnose.graph.data_operations import Entry

pytestmark = pytest.mark.usefixtures("nothing_compiled")

NET = nn.Linear(3, 1)


@pytest.fixture
def observed() -> Iterator[Callable[[Callable[[], object]], list[Entry]]]:
    """Return a function that runs another one within an observation, and returns what entered the network."""
    operations = DataOperations()

    def observe(run: Callable[[], object]) -> list[Entry]:
        assert operations.begin()
        run()
        operations.end()
        assert not _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
        return list(operations.entries)

    yield observe
    operations.end()


def values(zero: float = 0.0) -> Tensor:
    """Return positive values, except for one in the third row."""
    out = torch.arange(1.0, 13.0).reshape(4, 3)
    out[2, 1] = zero
    return out


def of_slices(x: Tensor) -> Tensor:
    """Take the logarithm of a part, and write it into the whole."""
    out = torch.zeros(4, 3)
    out[1:] = x[1:].log()
    return out


def in_place(x: Tensor) -> Tensor:
    """Overwrite values by their logarithm."""
    return x.clone().log_()


COMPUTED: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "a method": (lambda x: x.log(), "log", "-inf"),
    "a function": (lambda x: torch.log10(x) * 2 + 1, "log10", "-inf"),
    "an operator": (lambda x: torch.ones(4, 3) / x, "div", "inf"),
    "a reciprocal": (lambda x: 1 / x, "reciprocal", "inf"),
    "zero by zero": (lambda x: (x * 0) / (x * 0), "div", "nan"),
    "a root of a negative number": (lambda x: (x - 1.5).sqrt(), "sqrt", "nan"),
    "a statistic": (lambda x: (x - x.mean(0)) / x[:1].std(0), "std", "nan"),
    "in place": (in_place, "log", "-inf"),
    "through views": (lambda x: x.log().t().t()[:, :].contiguous(), "log", "-inf"),
    "a part of it": (of_slices, "log", "-inf"),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("is_target", [False, True], ids=["input", "target"])
@pytest.mark.filterwarnings("ignore:std\\(\\)")
def test_the_operation_of_a_tensor_that_enters_the_network_is_named(
    observed: Callable[..., list[Entry]], name: str, is_target: bool
) -> None:
    """It is the first one with finite arguments, at the line of the user's own file."""
    compute, operation, result = COMPUTED[name]

    def step() -> None:
        data = compute(values())
        functional.mse_loss(NET(torch.ones(4, 3)).expand(4, 3), data) if is_target else NET(data)

    entries = observed(step)
    assert entries
    assert {(one.operation.name, one.operation.result) for one in entries} == {(operation, result)}
    assert {one.operation.file for one in entries} == {"tests/diagnose/graph/test_data_operations.py"}
    assert {one.shape for one in entries} == {(4, 3)}


HARMLESS: dict[str, Callable[[Tensor], Tensor]] = {
    "finite": lambda x: (x + 1).log(),
    "replaced": lambda x: torch.where(x > 0, x.log(), 0.0),
    "repaired": lambda x: x.log().nan_to_num_(neginf=0.0),
    "filled in": lambda x: x.masked_fill(x == 0, -torch.inf),
    "given": lambda x: values(torch.nan) * 2 + x,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_values_that_no_operation_made_are_not_named(observed: Callable[..., list[Entry]], name: str) -> None:
    """These are finite again, filled in on purpose, or not finite in the data."""
    assert observed(lambda: NET(HARMLESS[name](values()))) == []


def test_memory_that_is_used_again_has_no_operation(observed: Callable[..., list[Entry]]) -> None:
    """A tensor that is not finite in the data is not that of an operation whose result was released."""

    def step() -> None:
        for _ in range(20):
            values().log()
            NET(torch.tensor(values(torch.nan).tolist()))

    assert observed(step) == []


def test_results_random_numbers_and_modes_are_those_of_the_run(observed: Callable[..., list[Entry]]) -> None:
    """Losses, gradients and random numbers are the same bit by bit, and a mode entered meanwhile stays entered."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 3))
    found: list[tuple[Tensor, ...]] = []

    def step() -> None:
        torch.manual_seed(1)
        net.zero_grad()
        x = (values() + torch.randn(4, 3).abs()).log()
        loss = functional.cross_entropy(net(x), torch.tensor([0, 1, 2, 1])) + net(x).square().mean()
        loss.backward()
        found.append((loss.detach(), *(one.grad.clone() for one in net.parameters() if one.grad is not None)))
        found[-1] += (torch.get_rng_state(),)

    step()
    observed(step)
    assert all(torch.equal(plain, watched) for plain, watched in zip(*found, strict=True))


def test_modules_with_another_way_of_evaluation_are_known() -> None:
    """Without gradients these use a fused function, unless a function mode is entered."""
    assert is_the_same_within_a_mode(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    assert not is_the_same_within_a_mode(nn.Sequential(nn.TransformerEncoderLayer(4, 2)))


class Own(TorchFunctionMode):
    """A mode of the user's own."""


def test_modes_of_the_user_are_left_as_they_are() -> None:
    """Nothing is observed within one, and one that was entered meanwhile is still entered afterwards."""
    operations = DataOperations()
    with Own():
        assert not operations.begin()
    assert operations.begin()
    with Own() as own:
        operations.end()
        assert _get_current_function_mode_stack() == [own]  # type: ignore[no-untyped-call]
    assert _get_current_function_mode_stack() == []  # type: ignore[no-untyped-call]


def test_other_threads_and_transforms_are_not_observed(observed: Callable[..., list[Entry]]) -> None:
    """Functions within ``torch.vmap`` have no elements to look at, and threads have modes of their own."""

    def step() -> None:
        thread = threading.Thread(target=lambda: NET(values().log()))
        thread.start()
        thread.join()
        torch.func.vmap(lambda row: torch.log(row))(values())

    assert observed(step) == []


def test_an_observation_ends_with_its_time() -> None:
    """Once the time is up, no further one begins."""
    operations = DataOperations(seconds=1e-9)
    assert operations.begin()
    values().log()
    operations.end()
    assert not operations.begin()
