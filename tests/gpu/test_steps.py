"""On a GPU no calm step waits, the numbers are exact, and a run that is watched keeps every bit."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch, Severity
from lightning_gradexplode.measure.histograms import measure_histogram
from tests.gpu.runs import Forbidding, Norms, fit, regression, weights
from tests.runs.test_device_waits import CONFIGURED, SETTLED, Mixed, ZeroGradient, fused

CALM: dict[str, Any] = {"log_every_n_steps": 0, "report": False}


@pytest.mark.parametrize("arguments", CONFIGURED.values(), ids=CONFIGURED)
@pytest.mark.parametrize("kind", ["plain", "float16", "bfloat16", "zero gradient", "mixed types"])
def test_a_calm_step_waits_for_nothing(arguments: dict[str, Any], kind: str) -> None:
    """PyTorch itself raises where the host waits between the loss and the update, and nothing is raised."""
    if kind == "zero gradient" and arguments.get("clip") == "auto":
        pytest.skip("its gradients fall to nothing, and a limit is found by those that are something")
    modules: dict[str, Any] = {"zero gradient": ZeroGradient, "mixed types": Mixed}
    torch.manual_seed(0)
    module = modules[kind](fused, batches=SETTLED + 10) if kind in modules else regression(fused, SETTLED + 10)
    monitor = GradientExplosionMonitor(**CALM, **copy.deepcopy(arguments))
    precision = {"float16": "16-mixed", "bfloat16": "bf16-mixed"}.get(kind, "32-true")
    fit(module, Forbidding(monitor, SETTLED), monitor, steps=SETTLED + 10, precision=precision)
    assert not monitor.failed
    assert all(one.severity is Severity.INFO for one in monitor.findings)  # a scaler's first overflows


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "64-true"])
def test_norms_are_exact(precision: str) -> None:
    """The norm of each step is that of a float64 loop, with a gradient scaler's scale divided out."""
    monitor = GradientExplosionMonitor(log_every_n_steps=1, report=False)
    norms = Norms(monitor)
    fit(regression(), monitor, norms, precision=precision)
    assert not monitor.failed
    assert len(norms.found) >= 10
    for step, found in norms.found.items():
        assert found == pytest.approx(norms.truths[step], rel=1e-6, nan_ok=True), step  # a scaler's overflow is NaN
    assert math.isfinite(norms.truths[9])


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
@pytest.mark.parametrize("build", [None, fused], ids=["sgd", "fused"])
def test_a_run_that_is_watched_keeps_every_bit(build: Any, precision: str, tmp_path: Path) -> None:
    """Weights after training with dropout are those of the run without a monitor, with all that can be measured."""
    plain, watched = regression(build), regression(build)
    fit(plain, precision=precision)
    monitor = GradientExplosionMonitor(log_every_n_steps=1, histogram_every_n_steps=2, report=tmp_path)
    fit(watched, monitor, precision=precision)
    assert not monitor.failed
    assert all(map(torch.equal, weights(watched), weights(plain)))


@pytest.mark.parametrize("value", [0.01, 1.0, 1e3])
@pytest.mark.parametrize("build", [None, fused], ids=["sgd", "fused"])
def test_clipping_is_that_of_the_trainer(value: float, build: Any) -> None:
    """Weights are those of ``gradient_clip_val`` bit for bit."""
    ours, theirs = regression(build), regression(build)
    monitor = GradientExplosionMonitor(**CALM, clip=value)
    fit(ours, monitor)
    fit(theirs, gradient_clip_val=value)
    assert not monitor.failed
    assert all(map(torch.equal, weights(ours), weights(theirs)))


class Peak(pl.Callback):
    """Measures the peak of the memory from the third step on, since at the first one the weights are copied."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Begin to measure."""
        if index == 2:
            torch.cuda.reset_peak_memory_stats()


def test_the_memory_is_that_of_the_run_without_it() -> None:
    """At the peak of calm steps the monitor has allocated less than a twentieth of the gradients."""

    def peak(*callbacks: Any) -> int:
        torch.manual_seed(0)
        module = regression(lambda parameters: SGD(parameters, lr=1e-3))
        module.layers = nn.Sequential(nn.Linear(6, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1))
        torch.cuda.empty_cache()
        begin = torch.cuda.memory_allocated()
        fit(module, *callbacks, Peak())
        return torch.cuda.max_memory_allocated() - begin

    alone = peak()
    monitor = GradientExplosionMonitor(**CALM)
    assert peak(monitor) - alone < 4 * 4096**2 / 20
    assert not monitor.failed


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_histogram_counts_each_element(deterministic: bool) -> None:
    """The buckets of a tensor on the GPU are those of the same tensor on the host, by either kernel."""
    torch.use_deterministic_algorithms(deterministic)
    values = torch.randn(300_000, device="cuda") * torch.logspace(-20, 20, 300_000, device="cuda")
    values[::1000] = 0.0
    values[1::1000] = torch.inf
    found, truth = measure_histogram(values), measure_histogram(values.cpu())
    assert np.array_equal(found.counts, truth.counts)


@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_plain_loop_keeps_every_bit(scaled: bool, clip: float | None) -> None:
    """With ``GradScaler`` and clipping too, the weights are those of the loop without the monitor."""

    def trained(is_watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 1)).cuda()
        optimizer = AdamW(network.parameters(), lr=0.01, fused=True)
        scaler = torch.amp.GradScaler("cuda", enabled=scaled)
        watch = GradientWatch(network, optimizer, scaler=scaler, report=False) if is_watched else None
        for _ in range(12):
            optimizer.zero_grad()
            inputs = torch.randn(32, 8, device="cuda")
            with torch.autocast("cuda", torch.float16, enabled=scaled):
                loss = network(inputs).float().square().mean()
            if watch is not None:
                watch.loss(loss)
            scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
        if watch is not None:
            watch.close()
            assert not watch.failed
            assert watch.last is not None
        return [one.detach().cpu().clone() for one in network.parameters()]

    assert all(map(torch.equal, trained(True), trained(False)))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_is_measured() -> None:
    """With ``torch.compile`` the norms are exact too, and nothing fails."""
    module = regression()
    module.layers = torch.compile(module.layers)  # type: ignore[assignment]
    monitor = GradientExplosionMonitor(log_every_n_steps=1, report=False)
    norms = Norms(monitor)
    fit(module, monitor, norms)
    assert not monitor.failed
    assert norms.found[5] == pytest.approx(norms.truths[5], rel=1e-6)


def test_a_captured_graph_is_told_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A step that a CUDA graph holds is captured and replayed as without the monitor, which logs that it is blind."""
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).cuda()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    watch = GradientWatch(network, optimizer, report=False)
    inputs = torch.randn(32, 8, device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        loss = network(inputs).square().mean()
        watch.loss(loss)
        loss.backward()
        optimizer.step()

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    weight = next(network.parameters())
    before = weight.detach().clone()
    for _ in range(3):
        graph.replay()
    watch.close()
    assert not watch.failed
    assert not torch.equal(weight, before)
    assert "CUDA graph" in caplog.text
