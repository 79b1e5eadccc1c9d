"""Plain loops with a compiled model or a compiled step of the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gradexplode import GradientWatch
from tests.hosts.loops import batches, exact_norm, loss_of, network, recorded, same_weights, train_until_stopped


def test_a_compiled_model_keeps_its_names() -> None:
    """The wrapper of torch.compile adds no prefix to the names of parameters, and the norm is exact."""
    model = network()
    compiled: Any = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.01)
    with GradientWatch(compiled, optimizer, report=False) as watch:
        train_until_stopped(watch, compiled, optimizer, 3)
        assert watch.last is not None
        assert watch.last.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
        assert recorded(watch) == pytest.approx(exact_norm(model.parameters()), rel=1e-9)


@pytest.mark.parametrize("given", ["compiled", "original"])
@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_model_that_must_compile_as_one_graph_does(given: str) -> None:
    """Nothing of the monitor is traced along with the model, also where the compiled one was not passed to it."""
    torch.compiler.reset()
    model = network()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(compiled if given == "compiled" else model, optimizer, report=False) as watch:
        train_until_stopped(watch, compiled, optimizer, 3)
        assert not watch.failed
        assert recorded(watch) == pytest.approx(exact_norm(model.parameters()), rel=1e-9)


@pytest.mark.filterwarnings("ignore:.*")
def test_a_compiled_step_of_the_optimizer_is_measured() -> None:
    """The hooks are not compiled along with it: the norm is exact, and the weights are those without the watch."""
    models = [network(), network()]
    for model, is_watched in zip(models, (True, False), strict=True):
        torch._dynamo.reset()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        step = torch.compile(optimizer.step, backend="eager")
        watch = GradientWatch(model, optimizer, report=False) if is_watched else None
        for batch in batches(3):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            if watch is not None:
                watch.loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]
            truth = exact_norm(model.parameters())
            step()
            if watch is not None:
                assert recorded(watch) == pytest.approx(truth, rel=1e-9)
        if watch is not None:
            watch.close()
    assert same_weights(*models)


def test_calls_within_one_compiled_graph_do_not_end_its_compilation(caplog: pytest.LogCaptureFixture) -> None:
    """The calls do nothing there, which is logged once, and the gradients are measured before the step."""
    torch.compiler.reset()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with GradientWatch(model, optimizer, report=False) as watch:

        @torch.compile(backend="eager", fullgraph=True)
        def forward(batch: torch.Tensor) -> torch.Tensor:
            watch.batch(batch)
            loss = loss_of(model, batch)
            watch.loss(loss)
            return loss

        for batch in batches(2):
            optimizer.zero_grad()
            forward(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            assert recorded(watch) == pytest.approx(exact_norm(model.parameters()), rel=1e-9)
    said = [one for one in caplog.messages if one.startswith("gradexplode")]
    assert len(said) == 1
    assert "inside of a function that torch.compile compiles" in said[0]
