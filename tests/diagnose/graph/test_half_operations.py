"""Operations in float16 between the last finite and the first non-finite value of a graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradexplode.diagnose.graph import fault_in_graph


def masked(scores: Tensor) -> Tensor:
    """Mask with a constant that is infinite in float16."""
    mask = torch.ones(4, 4).tril().to(scores.dtype)
    return (scores * mask - torch.tensor(1e10).to(scores.dtype) * (1 - mask)).softmax(-1)


def quantized(scores: Tensor) -> Tensor:
    """Round with a scale beyond float16; the gradient passes through."""
    return scores + ((scores * 65535.0).round() / 65535.0 - scores).detach()


def undefined(scores: Tensor) -> Tensor:
    """Compute a logarithm of negative numbers in float32."""
    return (scores.float() - 5).log()


@pytest.mark.parametrize(
    ("compute", "expected"),
    [(masked, {"sub", "softmax"}), (quantized, {"add"}), (undefined, set())],
    ids=["a mask", "a detached tensor", "float32"],
)
def test_the_operations_that_may_be_at_fault_are_named(compute: Callable[[Tensor], Tensor], expected: set[str]) -> None:
    """None of them saves the first value that is not finite as its own result or argument."""
    torch.manual_seed(0)
    net = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.float16):
        scores = net(torch.randn(4, 4))
        assert scores.dtype == torch.float16
        loss = nn.Linear(4, 4)(compute(scores) + 0).float().sum()
    assert not torch.isfinite(loss)
    found = fault_in_graph(loss, net)
    assert found is not None
    names = set(found.replay.half_operations if found.replay is not None else ())
    assert names >= expected
    assert bool(names) is bool(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_overflow_without_a_saved_result_is_named_in_float16_only(dtype: torch.dtype) -> None:
    """A layer's bias is not saved in float16, so that its result cannot be computed again."""
    torch.manual_seed(0)
    first, second = nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1)
    nn.init.constant_(first.weight, 100.0)
    nn.init.constant_(second.weight, 6e4)
    net = nn.Sequential(first, second)
    with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):
        out = net(torch.ones(2, 1, 4))
    loss = functional.batch_norm(out.float(), None, None, training=True).square().sum()
    found = fault_in_graph(loss, net)
    assert found is not None
    names = found.replay.half_operations if found.replay is not None else ()
    assert ("convolution" in names) is (dtype == torch.float16)


@pytest.mark.parametrize(("factor", "expected"), [(0.25, ("addmm",)), (1e36, ())])
def test_an_overflow_may_be_made_smaller_in_float32(factor: float, expected: tuple[str, ...]) -> None:
    """A sum over many units overflows in float16, whose mean is computed in float32; a large factor may do it, too."""
    net = nn.Linear(512, 1, bias=False)
    nn.init.ones_(net.weight)
    with torch.autocast("cpu", torch.float16):
        total = torch.addmm(net.weight[0, :1], 300.0 * torch.ones(8, 512), net.weight.T)
    found = fault_in_graph(functional.mse_loss(total.float() * factor, torch.zeros(8, 1)), net)
    assert found is not None
    assert (() if found.replay is None else found.replay.half_operations) == expected
