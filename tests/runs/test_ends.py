"""What was recorded is written however a run ends, and handlers of signals stay what they were."""

from __future__ import annotations

import os
import signal
import sys
from bdb import BdbQuit
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch
from lightning_gradexplode.measure import reading
from tests.processes import Script
from tests.runs.models import Batch, Regression
from tests.runs.probe import QUIET

LAST = 3


class Ending(Regression):
    """Ends at batch 3.

    Args:
        how: ``"term"`` and ``"interrupt"`` send a signal, others raise an exception, in this hook.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Send a signal, or raise."""
        loss = super().training_step(batch, batch_idx)
        if batch_idx == LAST:
            if self.how == "term":
                os.kill(os.getpid(), signal.SIGTERM)
            elif self.how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            elif self.how == "exit":
                sys.exit(3)
            elif self.how == "step":
                raise ValueError("the user's own")
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Raise between measurement and update."""
        if self.how == "optimizer" and self.trainer.global_step == LAST:
            raise ValueError("the user's own")

    def on_train_batch_end(self, *args: Any) -> None:
        """Raise after the step was recorded."""
        if self.how == "batch end" and self.trainer.global_step == LAST + 1:
            raise ValueError("the user's own")


def train(how: str, folder: Path) -> GradientExplosionMonitor:
    """Train until it ends."""
    monitor = GradientExplosionMonitor(report=folder, log_every_n_steps=100)
    with pytest.raises(BaseException) as ended:  # noqa: PT011 (any of several)
        pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False, callbacks=[monitor]).fit(Ending(how))
    assert not isinstance(ended.value, AssertionError)
    return monitor


@pytest.mark.parametrize(
    ("how", "steps"), [("exit", LAST), ("step", LAST), ("optimizer", LAST + 1), ("batch end", LAST + 1)]
)
def test_an_exception_that_leaves_fit_leaves_the_recording(how: str, steps: int, tmp_path: Path) -> None:
    """The file ends with the last step that was begun, and the monitor holds no run any more."""
    monitor = train(how, tmp_path)
    with np.load(tmp_path / "steps.npz") as recorded:
        assert recorded["step"].tolist() == list(range(steps))
    assert monitor.last is not None
    assert monitor.last.step == steps - 1
    assert monitor.findings == []


class DeviceIsLost(Regression):
    """An error of the device ends the run at batch 3, after which nothing can be read from it."""

    is_lost = False

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Raise as an assertion on a GPU does."""
        if batch_idx == LAST:
            self.is_lost = True
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().training_step(batch, batch_idx)


def poisoned(module: Regression) -> Regression:
    """Return a module whose fourth batch holds NaN in its second row."""
    loader = module.train_dataloader()
    loader.dataset.tensors[0][4 * LAST + 1] = torch.nan  # type: ignore[attr-defined]
    module.train_dataloader = lambda: loader  # type: ignore[method-assign]
    return module


def test_a_backward_pass_that_anomaly_detection_ends_is_diagnosed(tmp_path: Path) -> None:
    """The loss is known before it, so that its step is found, explained and recorded."""
    monitor = GradientExplosionMonitor(report=tmp_path)
    trainer = pl.Trainer(**QUIET, logger=False, callbacks=[monitor], detect_anomaly=True)
    with pytest.warns(UserWarning, match="Error detected"), pytest.raises(RuntimeError, match="returned nan values"):
        trainer.fit(poisoned(Regression()))
    assert [(finding.step, finding.sign) for finding in monitor.findings] == [(LAST, "nonfinite-loss")]
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert (diagnosis.causes[0].kind, diagnosis.causes[0].where) == ("nonfinite-input", "batch[0], row 1")
    with np.load(tmp_path / "steps.npz") as recorded:
        assert recorded["step"].tolist() == list(range(LAST + 1))
    assert (tmp_path / "index.html").exists()


def test_a_finite_loss_whose_backward_pass_raises_is_no_finding(tmp_path: Path) -> None:
    """Whatever has ended the run, it was no explosion."""

    class Raises(Regression):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            if self.global_step == LAST:
                raise ValueError("the user's own")
            super().backward(loss, *args, **kwargs)

    monitor = GradientExplosionMonitor(report=tmp_path)
    with pytest.raises(ValueError, match="own"):
        pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(Raises())
    assert monitor.findings == []


def likelihood(outputs: Tensor, values: Tensor) -> Any:
    """Return the logarithm of a normal density, which raises an exception for outputs that are NaN."""
    # A compilation in the same process switches the check of arguments off.
    return torch.distributions.Normal(outputs, 1.0, validate_args=True).log_prob(values)  # type: ignore[no-untyped-call]


class Raises(Regression):
    """Raises an exception in the forward pass of a batch with NaN.

    Args:
        how: What raises it: a distribution, a decomposition, or a check of the module's own.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.steps = how, 0

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """Compute a loss with something that raises."""
        self.steps += 1
        outputs = self.layers(batch[0])
        if self.how == "distribution":
            return -likelihood(outputs, batch[1]).mean()
        if self.how == "decomposition":
            return torch.linalg.cholesky(outputs.T @ outputs + torch.eye(1)).sum()
        if self.how == "sampling":
            return (torch.multinomial(outputs.softmax(0).T, 1) * outputs).mean()
        if self.how == "shapes" and batch_idx == LAST:
            return outputs @ outputs
        loss = (outputs - batch[1]).square().mean()
        if self.how == "check":
            assert not loss.isnan(), "the loss is NaN"
        if self.how == "debugger" and loss.isnan():
            raise BdbQuit
        return loss


@pytest.mark.parametrize("how", ["distribution", "decomposition", "sampling", "check"])
def test_values_that_raise_in_the_forward_pass_are_diagnosed(how: str, tmp_path: Path) -> None:
    """The step has no loss: computed again, it shows the value that was tested, and where that comes from."""
    monitor, module = GradientExplosionMonitor(report=tmp_path), Raises(how)
    with pytest.raises((ValueError, RuntimeError, AssertionError)) as raised:
        pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(poisoned(module))
    assert [(one.step, one.sign, one.severity.name) for one in monitor.findings] == [
        (LAST, "nonfinite-loss", "CRITICAL")
    ]
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert (diagnosis.causes[0].kind, diagnosis.causes[0].where) == ("nonfinite-input", "batch[0], row 1")
    assert type(raised.value).__name__ in diagnosis.what
    assert not any("on_explosion" in one for one in diagnosis.remedies), "an exception cannot be skipped"
    assert module.steps == LAST + 1, "the copy counts its own steps"
    with np.load(tmp_path / "steps.npz") as recorded:
        assert recorded["step"].tolist() == list(range(LAST + 1))


@pytest.mark.parametrize("how", ["shapes", "debugger"])
def test_other_exceptions_in_the_forward_pass_are_no_finding(how: str) -> None:
    """A wrong shape among finite values says nothing of them; the end of a debugger computes nothing again."""
    monitor, module = GradientExplosionMonitor(report=False), Raises(how)
    data = module if how == "shapes" else poisoned(module)
    with pytest.raises((RuntimeError, BdbQuit)):
        pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(data)
    assert monitor.findings == []
    assert monitor.diagnosis() is None


def test_values_that_raise_in_a_plain_loop_are_diagnosed() -> None:
    """With the function that computes a step, and the batch marked before its forward pass."""
    model, batches = torch.nn.Linear(3, 1), [torch.ones(4, 3) for _ in range(LAST + 1)]
    batches[LAST][2, 1] = torch.nan

    def step(network: Any, batch: Tensor) -> Any:
        return -likelihood(network(batch), torch.zeros(4, 1)).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = GradientWatch(model, optimizer, step=step, report=False)

    def train() -> None:
        for batch in batches:
            watch.batch(batch)
            optimizer.zero_grad()
            loss = step(model, batch)
            watch.loss(loss)
            loss.backward()
            optimizer.step()

    with pytest.raises(ValueError, match="Expected parameter"), watch:
        train()
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert (diagnosis.step, diagnosis.causes[0].kind, diagnosis.where) == (LAST, "nonfinite-input", "batch, row 2")


def test_an_error_of_the_device_leaves_the_recording(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The steps that were read before are written, one line says that the last is lost, and the error is kept."""
    module = DeviceIsLost()
    to_host = reading.to_host

    def read(numbers: Tensor) -> Any:
        if module.is_lost:
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
        return to_host(numbers)

    monkeypatch.setattr(reading, "is_on_host", lambda tensor: False)
    monkeypatch.setattr(reading, "to_host", read)
    monitor = GradientExplosionMonitor(report=tmp_path, log_every_n_steps=100)
    with pytest.raises(RuntimeError, match="device-side assert"):
        pl.Trainer(**{**QUIET, "max_steps": 8}, logger=False, callbacks=[monitor]).fit(module)
    with np.load(tmp_path / "steps.npz") as recorded:
        assert recorded["step"].tolist() == list(range(LAST - 1))
    assert sum("could not be read" in line for line in caplog.messages) == 1
    assert not monitor.failed


PROGRAM = """
import signal, sys
from pathlib import Path
from tests.runs.test_ends import train

if "chained" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *arguments: print("mine", flush=True))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
before = signal.getsignal(signal.SIGTERM)
train(sys.argv[1], Path(sys.argv[2]))
print("same" if signal.getsignal(signal.SIGTERM) is before else "another")
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["term"], ["term", "chained"], ["interrupt"]])
def test_a_signal_leaves_the_recording(arguments: list[str], tmp_path: Path) -> None:
    """Lightning ends the fit at SIGTERM and SIGINT; the user's own handler is called, and is there afterwards."""
    how, *chained = arguments
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = Script(program, [how, str(tmp_path), *chained]).wait()
    assert ended.exit_code == 0, ended.errors[-2000:]
    assert ended.output.split() == [*(["mine"] if chained else []), "same"]
    with np.load(tmp_path / "steps.npz") as recorded:
        assert recorded["step"].tolist() == list(range(LAST + (how == "term")))  # SIGTERM lets a batch end
