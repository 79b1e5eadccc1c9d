"""The monitor in loops that Lightning Fabric drives, in both namespaces, against float64."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradexplode import FabricWatch, GradientWatch
from tests.hosts.details import check_details, copies
from tests.hosts.loops import batches, exact_norm, loss_of, network, same_weights

NAMESPACES = [
    name for name in ("lightning.fabric", "lightning_fabric") if importlib.util.find_spec(name.partition(".")[0])
]


def precision_plugins(namespace: str, scaled: bool) -> list[Any]:
    """Return a precision plugin with a real gradient scaler, which processors have none of by default."""
    if not scaled:
        return []
    plugins = importlib.import_module(f"{namespace}.plugins")
    return [plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]


def train(
    namespace: str,
    folder: Path,
    monitored: bool,
    accumulate: int = 1,
    scaled: bool = False,
    precision: Any = None,
    **arguments: Any,
) -> nn.Module:
    """Train with clipping by Fabric; compare each step's norm with float64."""
    fabric_of = importlib.import_module(namespace)
    logger = importlib.import_module(f"{namespace}.loggers").CSVLogger(str(folder))
    plugins = precision_plugins(namespace, scaled)
    fabric = fabric_of.Fabric(accelerator="cpu", devices=1, loggers=logger, plugins=plugins, precision=precision)
    raw = network()
    model, optimizer = fabric.setup(raw, torch.optim.Adam(raw.parameters(), lr=0.01))
    arguments |= {"log_every_n_steps": 1}
    watch = FabricWatch(fabric, model, optimizer, histogram_every_n_steps=1, **arguments) if monitored else None
    for step, batch in enumerate(batches(6)):
        optimizer.zero_grad()
        for part in batch.chunk(accumulate):
            loss = loss_of(model, part) / accumulate
            if watch is not None:
                watch.loss(loss)
            with fabric.no_backward_sync(model, enabled=False):
                fabric.backward(loss)
        scale = fabric.strategy.precision.scaler.get_scale() if scaled else 1.0
        truth, gradients = exact_norm(raw.parameters(), scale), copies(raw, scale)
        fabric.clip_gradients(model, optimizer, max_norm=0.05)
        optimizer.step()
        if watch is not None:
            assert watch.last is not None
            assert watch.last.step == step
            assert watch.last.grad_norm == pytest.approx(truth, rel=1e-6 if scaled else 1e-9)
            assert watch.last.grad_norm_clipped == pytest.approx(0.05, rel=1e-3)
            check_details(watch.last, gradients)
    if watch is not None:
        watch.close()
        logger.save()
        assert not watch.failed
        assert "gradexplode/grad_norm" in (Path(logger.log_dir) / "metrics.csv").read_text()
    return raw


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize(
    "arguments", [{}, {"accumulate": 4}, {"scaled": True}, {"precision": "bf16-mixed"}, {"precision": "64-true"}]
)
def test_the_norm_is_the_one_before_fabrics_clipping(namespace: str, arguments: Any, tmp_path: Path) -> None:
    """So are its details, in every precision and with accumulation; weights are those without us, bit for bit."""
    monitored = train(namespace, tmp_path / "a", True, report=False, **arguments)
    plain = train(namespace, tmp_path / "b", False, **arguments)
    assert same_weights(monitored, plain)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_of_nan_is_held_back(compiled: bool, tmp_path: Path) -> None:
    """With "skip" and a way to compute a step again, the weights stay finite and the input is named."""
    fabric_of = importlib.import_module(NAMESPACES[0])
    fabric = fabric_of.Fabric(accelerator="cpu", devices=1)
    raw = network()
    given: Any = torch.compile(raw, backend="eager") if compiled else raw
    model, optimizer = fabric.setup(given, torch.optim.SGD(raw.parameters(), lr=0.01))
    arguments: dict[str, Any] = {"on_explosion": "skip", "log_dir": tmp_path, "step": loss_of}
    with FabricWatch(fabric, model, optimizer, **arguments) as watch:
        for step, batch in enumerate(batches(12)):
            if step == 8:
                batch[3, 1] = float("nan")
            watch.batch(batch)
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            watch.loss(loss)
            fabric.backward(loss)
            optimizer.step()
    assert all(bool(one.isfinite().all()) for one in raw.parameters())
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "nonfinite-input"
    assert watch.last is not None
    assert watch.last.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert watch.report_folder == tmp_path / "gradexplode"


@pytest.mark.filterwarnings("ignore:.*")
def test_a_plain_watch_works_around_fabric_too() -> None:
    """`GradientWatch` finds the optimizer and the network within Fabric's wrappers."""
    fabric_of = importlib.import_module(NAMESPACES[0])
    fabric = fabric_of.Fabric(accelerator="cpu", devices=1)
    raw = network()
    model, optimizer = fabric.setup(raw, torch.optim.SGD(raw.parameters(), lr=0.01))
    with GradientWatch(model, optimizer, report=False) as watch:
        loss = loss_of(model, batches(1)[0])
        watch.loss(loss)
        fabric.backward(loss)
        optimizer.step()
        assert watch.last is not None
        assert watch.last.grad_norm == pytest.approx(exact_norm(raw.parameters()), rel=1e-9)


def test_what_is_no_fabric_is_refused() -> None:
    """The message names the argument and what it takes."""
    model = network()
    with pytest.raises(TypeError, match=r"fabric must be a lightning\.fabric\.Fabric"):
        FabricWatch(object(), model, torch.optim.SGD(model.parameters(), lr=0.1))
