"""On an accelerator a calm step makes the host wait for nothing, and several processes exchange one message.

There is no accelerator here: the monitor is made to believe that tensors lie on one. What would make the host wait
there is counted: numbers that are read, copies to the host, and conditions on tensors.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections import Counter
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch, PercentileClip, Severity, ZScoreClip
from lightning_gradexplode.clip import ClipPolicy, ConstantClip
from lightning_gradexplode.engine import deferred_steps
from lightning_gradexplode.measure import reading
from lightning_gradexplode.measure.norms import measure_norms
from tests.runs.models import Regression
from tests.runs.probe import QUIET, Watched
from tests.runs.test_deferred_reading import Order, adamw, train
from tests.runs.test_modes import scaler


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients, summed in float64."""
    return torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt()


CALM: dict[str, Any] = {"log_every_n_steps": 0, "report": False}


def fused(parameters: Any) -> Optimizer:
    """Build a fused AdamW, which takes a flag not to step."""
    return AdamW(parameters, lr=0.01, fused=True)


class NaNLoss(Regression):
    """Its loss, and with it each gradient, is NaN at the fourth batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss."""
        return self.loss(batch) * (math.nan if batch_idx == 3 else 1.0)


class ZeroGradient(Regression):
    """One parameter gets gradients that are exactly zero, as a unit that is never active does."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Add what does not depend on it."""
        return self.loss((batch[0] * 0.0, batch[1]))


class Backward(Order):
    """Notes the beginning of each backward pass, by a hook in which gradients cannot be changed."""

    on_after_backward = pl.Callback.on_after_backward

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Record the call."""
        self.events.append("backward")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> Order:
    """Pretend that all tensors lie on an accelerator, and note its reads."""
    order, to_host = Backward(), reading.to_host

    def counted(numbers: Tensor) -> Any:
        order.events.append("read")
        return to_host(numbers)

    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(reading, "to_host", counted)
    return order


def waits(order: Order) -> list[int]:
    """Return the reads between backward pass and update of each step but the first, whose weights are read."""
    return order.between("backward", "step")[1:]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"clip": 1.0}, {"clip": ConstantClip(0.01)}, {"on_explosion": ["skip", "rollback"], "clip": 1.0}],
    ids=["warn", "clip", "clip that binds", "skip and rollback"],
)
@pytest.mark.parametrize("build", [None, fused], ids=["sgd", "fused"])
def test_no_step_waits_before_its_update(order: Order, arguments: dict[str, Any], build: Any) -> None:
    """Not one read lies between backward pass and update, and later at most two; a skip needs a fused optimizer."""
    train(order, GradientExplosionMonitor(**CALM, **arguments), 12, Regression(build))
    if "on_explosion" in arguments and build is None:
        assert all(waits(order))  # a plain optimizer has no flag: a skip would change it
        return
    assert waits(order) == [0] * 11
    assert max(order.between("step", "backward")[1:]) <= 2


class Mixed(Regression):
    """Its first layer has float64 weights, its second one bfloat16 and its last one float32."""

    def __init__(self, build: Any = None, batches: int = 8) -> None:
        kinds = (torch.float64, torch.bfloat16, torch.float32)
        super().__init__(build, batches)
        self.layers: Any = nn.ModuleList(nn.Linear(6, 6 if kind is not kinds[-1] else 1, dtype=kind) for kind in kinds)

    def loss(self, batch: Any) -> Tensor:
        """Convert between the layers."""
        values, targets = batch
        for layer in self.layers:
            values = layer(values.to(layer.weight.dtype)).tanh()
        loss: Tensor = (values - targets).square().mean()
        return loss


CONFIGURED: dict[str, dict[str, Any]] = {
    "warn": {},
    "clip": {"clip": 1.0},
    "clip that binds": {"clip": 1e-3},
    "auto": {"clip": "auto"},
    "percentile": {"clip": PercentileClip()},
    "score": {"clip": ZScoreClip(warmup=4)},
    "skip": {"on_explosion": "skip"},
    "all": {"clip": "auto", "on_explosion": ["skip", "rollback"], "update_sample": 10},
}
SETTLED = 14
"""Steps after which ``clip="auto"`` knows its limit."""


@pytest.mark.parametrize("arguments", CONFIGURED.values(), ids=CONFIGURED)
@pytest.mark.parametrize("kind", ["plain", "scaler", "zero gradient", "mixed types"])
def test_a_calm_step_waits_for_nothing(order: Order, arguments: dict[str, Any], kind: str) -> None:
    """No read lies before the update; after it there is one transfer, and one more where weights are looked at."""
    modules = {"zero gradient": ZeroGradient, "mixed types": Mixed}
    module = modules.get(kind, Regression)(fused, batches=SETTLED + 10)
    plugins = [scaler()] if kind == "scaler" else None
    monitor = GradientExplosionMonitor(**CALM, **copy.deepcopy(arguments))
    train(order, monitor, SETTLED + 10, module, plugins=plugins)
    assert not monitor.failed
    first = SETTLED if arguments.get("clip") == "auto" else 1
    if kind == "zero gradient" and first == SETTLED:
        return  # its gradients fall to nothing, and a limit is found by those that are something
    assert order.between("backward", "step")[first:] == [0] * (SETTLED + 10 - first)
    after = order.between("step", "backward")[first:]
    assert max(after) <= 2
    assert after.count(1) >= len(after) // 2


@pytest.mark.parametrize("policy", [PercentileClip(window=5), ZScoreClip(1.0, warmup=3)], ids=["percentile", "score"])
@pytest.mark.parametrize("build", [None, fused], ids=["sgd", "fused"])
@pytest.mark.parametrize("kind", ["plain", "scaler", "mixed types"])
def test_a_policy_on_the_device_clips_as_on_the_host(
    monkeypatch: pytest.MonkeyPatch, policy: ClipPolicy, build: Any, kind: str
) -> None:
    """Weights, clip value, clip rate and the policy's memory are those of the run that reads before each update."""

    def run() -> Watched:
        torch.manual_seed(0)
        return Watched(
            (Mixed if kind == "mixed types" else Regression)(build, batches=12),
            monitor={"log_every_n_steps": 0, "clip": copy.deepcopy(policy)},
            max_steps=12,
            plugins=[scaler()] if kind == "scaler" else None,
        )

    host = run()
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    device = run()
    for one, other in zip(device.module.parameters(), host.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    for run_ in (device, host):
        assert run_.monitor.last is not None
        assert not run_.monitor.failed
    for quantity in ("grad_norm", "clip_val", "clip_rate", "clip_algorithm"):
        found, truth = (getattr(one.monitor.last, quantity) for one in (device, host))
        assert found == (truth if isinstance(truth, (str, type(None))) else pytest.approx(truth, rel=1e-5)), quantity


def test_the_default_limit_of_outliers_does_not_wait(order: Order) -> None:
    """``clip="auto"`` knows its limit from the norms before, once there are ten of them and the loss has a level."""
    train(order, GradientExplosionMonitor(**CALM, clip="auto"), 40, Regression(adamw, batches=40))
    assert waits(order)[-10:] == [0] * 10


def test_a_policy_of_the_users_own_waits(order: Order) -> None:
    """It is given the numbers of the step on the host, also where it derives from one that does not wait."""

    class Half(ConstantClip):
        def threshold(self, record: Any) -> float:
            assert record.grad_norm is not None
            return float(record.grad_norm) / 2

    policy: ClipPolicy = Half(1.0)
    train(order, GradientExplosionMonitor(**CALM, clip=policy), 6)
    assert all(waits(order))


def test_a_gradient_of_zero_is_not_looked_at_twice(order: Order) -> None:
    """A zero of a sum in float64 is a true zero."""
    train(order, GradientExplosionMonitor(**CALM), 12, ZeroGradient())
    assert waits(order) == [0] * 11
    assert order.between("step", "backward").count(1) >= 5


def test_a_scaler_adds_no_wait(order: Order) -> None:
    """The monitor reads nothing before the update of a gradient scaler either."""
    train(order, GradientExplosionMonitor(**CALM), 12, plugins=[scaler()])
    assert waits(order) == [0] * 11


@pytest.mark.parametrize("build", [None, fused], ids=["sgd", "fused"])
@pytest.mark.parametrize("value", [0.01, 1.0, 1e3])
def test_a_clip_without_a_wait_is_that_of_the_trainer(order: Order, value: float, build: Any) -> None:
    """Weights are those of ``gradient_clip_val`` to rounding, and the norm before and the clip rate are right."""
    torch.manual_seed(0)
    ours = Watched(Regression(build), monitor={"log_every_n_steps": 0, "clip": value}, max_steps=8)
    torch.manual_seed(0)
    theirs = Watched(Regression(build), monitor={"log_every_n_steps": 0}, max_steps=8, gradient_clip_val=value)
    for one, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert ours.monitor.last is not None
    assert theirs.monitor.last is not None
    assert ours.monitor.last.grad_norm == pytest.approx(theirs.monitor.last.grad_norm, rel=1e-6)
    assert ours.monitor.last.clip_val == value
    assert ours.monitor.last.clip_rate == theirs.monitor.last.clip_rate


@pytest.mark.parametrize("value", [0.01, 1e3], ids=["binds", "does not bind"])
def test_a_clip_on_the_device_measures_the_gradients_once(
    order: Order, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Clipping adds one multiplication to each step, by a factor from the norm that was measured already."""
    kernels: Counter[str] = Counter()

    def counted(name: str) -> Any:
        kernel = getattr(torch, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            kernels[name] += 1
            return kernel(*args, **kwargs)

        return called

    def kernels_with(clip: float | None) -> Counter[str]:
        kernels.clear()
        train(order, GradientExplosionMonitor(**CALM, clip=clip), 6, Regression(fused))
        return kernels.copy()

    for name in ("_foreach_norm", "_foreach_mul_"):
        monkeypatch.setattr(torch, name, counted(name))
    more = kernels_with(value) - kernels_with(None)
    assert more["_foreach_norm"] <= 1  # the first step is read, and clipped by the trainer
    assert 5 <= more["_foreach_mul_"] <= 6


@pytest.mark.parametrize("build", [fused, lambda parameters: SGD(parameters, lr=0.01, momentum=0.9, fused=True)])
def test_an_update_that_is_not_finite_is_left_out_on_the_device(order: Order, build: Any) -> None:
    """Weights and optimizer state are those of before; the record, one step late, says so, and the run goes on."""
    states: list[list[Tensor]] = []
    records: list[Any] = []

    class Keeps(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
            state = trainer.optimizers[0].state.values()
            tensors = [one for each in state for one in each.values() if isinstance(one, Tensor)]
            states.append([one.detach().clone() for one in [*pl_module.parameters(), *tensors]])
            records.append(monitor.last)

    monitor = GradientExplosionMonitor(**CALM, on_explosion="skip")
    trainer = pl.Trainer(**{**QUIET, "max_steps": 6}, logger=False, callbacks=[order, Keeps(), monitor])
    trainer.fit(NaNLoss(build))
    assert waits(order)[:3] == [0, 0, 0]
    assert all(map(torch.equal, states[3], states[2]))
    assert not all(map(torch.equal, states[2], states[1]))
    assert all(one.isfinite().all() for one in states[5])
    found = next(one for one in monitor.findings if one.sign == "nonfinite-loss")
    assert (found.step, found.severity) == (3, Severity.CRITICAL)
    assert monitor.last is not None
    assert monitor.last.skipped_steps == 1
    skipped = next(one for one in records if one is not None and one.step == 3)
    assert skipped.update_taken is False
    assert "SkipStep" in skipped.skipped_by
    assert not hasattr(trainer.optimizers[0], "found_inf")


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that all tensors lie on an accelerator."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("double", [False, True])
def test_norms_of_mixed_types_are_exact(double: bool) -> None:
    """Half, single and double precision in one list are grouped, and an all-zero one is read along."""
    tensors: list[Tensor | None] = [torch.randn(50), torch.randn(9).bfloat16(), None, torch.zeros(5)]
    if double:
        tensors += [torch.randn(7).double(), torch.zeros(3).double()]
    truth = [0.0 if one is None else float(one.double().norm()) for one in tensors]
    assert measure_norms(tensors).each.tolist() == pytest.approx(truth, rel=1e-6)
    assert math.isfinite(measure_norms(tensors).total)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_plain_loop_clips_on_the_device(monkeypatch: pytest.MonkeyPatch, mixed: bool) -> None:
    """Weights are those of a loop that calls ``clip_grad_norm_``, also where gradients are of two types."""

    def trained(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        dtype = torch.float64 if mixed else torch.float32
        network = torch.nn.Sequential(torch.nn.Linear(8, 8, dtype=dtype), torch.nn.Linear(8, 1))
        optimizer = SGD(network.parameters(), lr=0.1)
        watch = GradientWatch(network, optimizer, report=False, clip=0.05) if watched else None
        for _ in range(6):
            optimizer.zero_grad()
            inputs = torch.randn(16, 8, dtype=dtype)
            loss = network[1](network[0](inputs).float()).square().mean()
            if watch is not None:
                watch.loss(loss)
            loss.backward()
            if watch is None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 0.05)
            optimizer.step()
        if watch is not None:
            watch.close()
        return list(network.parameters())

    truth = trained(watched=False)
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    for one, other in zip(trained(watched=True), truth, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["plain", "user clips", "clip", "score", "skip", "scaler", "zero gradient"])
def test_a_plain_loop_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is read lies before the update of a step only where the numbers of the step before arrive."""
    reads, to_host = [0], reading.to_host

    def counted(numbers: Tensor) -> Any:
        reads[-1] += 1
        return to_host(numbers)

    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(reading, "to_host", counted)
    arguments: dict[str, dict[str, Any]] = {
        "clip": {"clip": 1e-3},
        "score": {"clip": ZScoreClip(warmup=3)},
        "skip": {"on_explosion": "skip"},
    }
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = AdamW(network.parameters(), lr=0.01, fused=True)
    scales = torch.amp.GradScaler("cpu", enabled=kind == "scaler")
    watch = GradientWatch(network, optimizer, scaler=scales, **CALM, **arguments.get(kind, {}))
    norms = []
    for _ in range(14):
        reads.append(0)
        optimizer.zero_grad()
        loss = network(torch.randn(8, 4) * (kind != "zero gradient")).square().mean()
        watch.loss(loss)
        scales.scale(loss).backward()
        reads.append(0)
        norms.append(float(total_norm([one.grad for one in network.parameters() if one.grad is not None])))
        if kind == "user clips":
            nn.utils.clip_grad_norm_(network.parameters(), 1e-2)
        scales.step(optimizer)
        scales.update()
    watch.close()
    assert sum(reads[4::2]) <= len(reads) // 4  # of weights, in the hook behind the update
    assert max(reads[3::2]) == 1
    assert not watch.failed
    assert watch.last is not None
    assert watch.last.step == 13
    if kind != "scaler":
        assert watch.last.grad_norm == pytest.approx(norms[-1], rel=1e-5)


@pytest.mark.parametrize("change", ["clip", "grow", "clean", "spread"])
@pytest.mark.parametrize("on_host", [False, True])
def test_what_a_loop_does_to_gradients_is_inferred_from_the_norms(
    monkeypatch: pytest.MonkeyPatch, change: str, on_host: bool
) -> None:
    """Of smaller gradients the earlier norm counts, of larger ones and of NaN that which the optimizer gets."""
    if not on_host:
        monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    network = nn.Linear(4, 1)
    optimizer = SGD(network.parameters(), lr=0.01)
    watch = GradientWatch(network, optimizer, **CALM, diagnose=False)
    for number in range(6):
        optimizer.zero_grad()
        loss = network(torch.randn(8, 4)).square().mean()
        watch.loss(loss)
        loss.backward()
        gradients = [one.grad for one in network.parameters() if one.grad is not None]
        before = float(total_norm(gradients))
        if number == 5:
            if change in ("clean", "spread"):
                gradients[0][0, 0] = math.nan
            if change == "grow":
                gradients[0].mul_(3.0)
            elif change == "clean":
                gradients[0].nan_to_num_()
            else:
                nn.utils.clip_grad_norm_(network.parameters(), before / 4)
        after = float(total_norm(gradients))
        optimizer.step()
    watch.close()
    assert watch.last is not None
    truth = before if change in ("clip", "clean") else after  # cleaned, they are smaller than after the backward pass
    assert watch.last.grad_norm == pytest.approx(truth, rel=1e-5, nan_ok=True)


def test_a_plain_loop_of_two_optimizers_records_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device the numbers of both arrive late, and none is lost."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    networks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 1)])
    optimizers = [AdamW(one.parameters(), lr=0.01) for one in networks]
    watch = GradientWatch(networks, optimizers, **CALM)
    for _ in range(8):
        norms = []
        for place, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            loss = networks[1](networks[0](torch.randn(8, 4))).square().mean()
            watch.loss(loss)
            loss.backward()
            norms.append(float(total_norm([one.grad for one in networks[place].parameters() if one.grad is not None])))
            optimizer.step()
    state = watch.state_dict()
    watch.close()
    assert [one["steps"] for one in state["optimizers"]] == [8, 8]
    assert watch.last is not None
    assert watch.last.step == 7
    assert watch.last.grad_norm == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("is_small", [True, False])
def test_only_a_small_batch_is_held_beside_the_next_one(monkeypatch: pytest.MonkeyPatch, is_small: bool) -> None:
    """The batch of a step whose numbers are on their way needs memory of the device; a large one is let go."""
    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(deferred_steps, "BATCH_BYTES", 10_000 if is_small else 10)
    held: list[bool] = []

    class Looks(Regression):
        before: Any = None

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.before is not None:
                held.append(self.before() is not None)
            self.before = weakref.ref(batch[0])
            return self.loss(batch)

    monitor = GradientExplosionMonitor(**CALM)
    pl.Trainer(**{**QUIET, "max_steps": 6}, logger=False, callbacks=[monitor]).fit(Looks())
    assert held[1:] == [is_small] * 4
    assert not monitor.failed
