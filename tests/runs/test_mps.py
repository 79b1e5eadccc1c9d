"""A device without float64, such as Apple's GPUs: whatever is configured, nothing is computed in it there.

There is no such device here: the monitor is made to believe that all tensors lie on one, and any operation with a
result in float64 raises. Only after the transfer to the host, and for scalars that are made there, it is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_gradexplode import GradientExplosionMonitor, PercentileClip
from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.gradients import GradientReading
from lightning_gradexplode.measure.maxima import measure_maxima
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.measure.parameters import parameters_of
from tests.runs.models import Regression
from tests.runs.probe import QUIET
from tests.runs.test_device_waits import NaNLoss, ZeroGradient, fused


class NoFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where an operation has a result in float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at its results."""
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        is_of_host = kwargs.get("device") == torch.device("cpu") and func is torch.ops.aten.scalar_tensor.default
        for one in () if is_of_host else tree_leaves(results):
            if isinstance(one, Tensor) and one.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype ({func})")
        return results


@pytest.fixture(autouse=True)
def on_mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that all tensors lie on a device without float64."""
    to_host = reading.to_host

    def allowed(numbers: Tensor) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            return to_host(numbers)

    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(reading, "widest_type", lambda device: torch.float32)
    monkeypatch.setattr(reading, "to_host", allowed)
    with NoFloat64():  # type: ignore[no-untyped-call]
        yield


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"log_every_n_steps": 1, "histogram_every_n_steps": 1, "per_parameter": True},
        {"clip": 1e-3},
        {"clip": "auto"},
        {"clip": PercentileClip()},
        {"on_explosion": ["skip", "rollback"]},
        {"update_sample": 100, "log_every_n_steps": 1},
    ],
    ids=["defaults", "all is logged", "clip", "auto", "percentile", "skip and rollback", "sample"],
)
@pytest.mark.parametrize("module", [Regression, ZeroGradient, NaNLoss])
def test_nothing_is_computed_in_float64(arguments: dict[str, Any], module: Any) -> None:
    """The monitor measures to the end, and does not fail."""
    monitor = GradientExplosionMonitor(report=False, diagnose=False, **arguments)
    pl.Trainer(**{**QUIET, "max_steps": 14}, logger=False, callbacks=[monitor]).fit(module(fused, batches=14))
    assert not monitor.failed
    assert monitor.last is not None
    assert monitor.last.step == 13
    assert (monitor.last.nonfinite_count == 0) or module is NaNLoss


def test_a_scale_on_the_device_is_divided_out_there() -> None:
    """The norms that other device computations use are unscaled, in the widest type of the device."""
    network = torch.nn.Linear(4, 3)
    network(torch.randn(5, 4)).square().sum().backward()
    parameters = parameters_of(torch.optim.SGD(network.parameters(), lr=0.1), network)
    taken = GradientReading.take(parameters, torch.tensor(8.0))
    norms = taken.norms_on_device(torch.device("cpu"))
    assert norms.dtype is torch.float32
    assert norms.tolist() == pytest.approx(
        [float(torch.linalg.vector_norm(one)) / 8 for one in parameters.gradients if one is not None], rel=1e-6
    )
    assert taken.norms().each.tolist() == pytest.approx(norms.tolist(), rel=1e-6)


def test_norms_in_float32_are_exact_wherever_the_elements_lie() -> None:
    """Large, small, enormous, minute, zero and non-finite elements have the norms of float64, to 1e-6."""
    tensors = [
        torch.randn(200_000),
        torch.randn(3, 70) * 1e-21,
        torch.randn(600) * 1e30,
        torch.zeros(700),
        torch.randn(5).bfloat16(),
        torch.tensor([1.0, torch.inf]),
        torch.complex(torch.randn(8), torch.randn(8)),
    ]
    with torch.utils._python_dispatch._disable_current_modes():
        truth = [float(torch.linalg.vector_norm(one.to(torch.complex128).abs())) for one in tensors]
        largest = [float(one.to(torch.complex128).abs().max()) for one in tensors]
    assert measure_norms(tensors).each.tolist() == pytest.approx(truth, rel=1e-6)
    assert measure_norms(tensors).nonfinite.tolist() == [0, 0, 0, 0, 0, 1, 0]
    assert measure_maxima(tensors).tolist() == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("zeros", [0, 1, 5])
def test_zeros_are_read_along(monkeypatch: pytest.MonkeyPatch, zeros: int) -> None:
    """One transfer serves for all, whatever the number of tensors that are zero; of what underflows it takes two."""
    reads, to_host = [], reading.to_host

    def counted(numbers: Tensor) -> Any:
        reads.append(len(numbers))
        return to_host(numbers)

    monkeypatch.setattr(reading, "to_host", counted)
    tensors = [torch.ones(10), *[torch.zeros(600)] * zeros]
    assert measure_norms(tensors).each.tolist() == pytest.approx([10**0.5, *[0.0] * zeros])
    assert len(reads) == 1
    assert measure_norms([*tensors, torch.full((4,), 1e-30)]).each[-1] == pytest.approx(2e-30)
    assert len(reads) == 3
