"""Training of a case outside of Lightning's Trainer: in a loop of plain PyTorch, with Fabric, or by transformers."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.diagnosis.case import Case, Rows
from benchmarks.diagnosis.probe import Probe
from lightning_gradexplode import GradientWatch
from lightning_gradexplode.records.diagnosis import Diagnosis


class Watching:
    """What a loop passes its losses to: a probe, and the monitor if there is one.

    Args:
        probe: Records the losses.
        monitor: The monitor.
    """

    def __init__(self, probe: Probe, monitor: GradientWatch | None) -> None:
        self._probe, self._monitor = probe, monitor

    def loss(self, loss: Tensor) -> None:
        """Record a loss before its backward pass."""
        self._probe.record_loss(loss)
        if self._monitor is not None:
            self._monitor.loss(loss)


def train_in_loop(
    module: Case, callbacks: Sequence[Callback], monitor: Mapping[str, Any] | None, probe: Probe
) -> Diagnosis | None:
    """Train a case in the loop that it names.

    Args:
        module: The case.
        callbacks: Callbacks of the Trainer that change optimizers at the start, or before a batch.
        monitor: Arguments of the monitor, None to train without one.
        probe: Records what becomes of the run.
    """
    loop = {"plain": _plain, "fabric": _fabric, "transformers": _transformers}[module.host]
    return loop(module, callbacks, monitor, probe)


def _plain(
    module: Case, callbacks: Sequence[Callback], monitor: Mapping[str, Any] | None, probe: Probe
) -> Diagnosis | None:
    optimizers, schedulers = _configured(module)
    watch = None if monitor is None else GradientWatch(module, optimizers, scaler=module.scaler_in_loop(), **monitor)
    _run(module, module, optimizers, schedulers, callbacks, probe, watch, torch.Tensor.backward)
    return _closed(watch)


def _fabric(
    module: Case, callbacks: Sequence[Callback], monitor: Mapping[str, Any] | None, probe: Probe
) -> Diagnosis | None:
    from lightning.fabric import Fabric

    from lightning_gradexplode import FabricWatch

    fabric = Fabric(accelerator="cpu", devices=1, **module.options)
    raw, schedulers = _configured(module)
    model, *optimizers = fabric.setup(module, *raw)
    model.mark_forward_method("loss")
    watch = None if monitor is None else FabricWatch(fabric, model, optimizers, **monitor)
    _run(module, model, optimizers, schedulers, callbacks, probe, watch, fabric.backward, raw)
    return _closed(watch)


def _transformers(
    module: Case, callbacks: Sequence[Callback], monitor: Mapping[str, Any] | None, probe: Probe
) -> Diagnosis | None:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import ProgressCallback
    from transformers.utils import logging as messages

    from lightning_gradexplode.hosts.transformers import GradientExplosionTrainerCallback

    messages.set_verbosity_error()
    (optimizer,), schedulers = _configured(module)
    _observe([optimizer], probe)
    own = None if monitor is None else GradientExplosionTrainerCallback(**monitor)
    stand_in = SimpleNamespace(optimizers=[optimizer], global_step=0)
    for one in callbacks:
        one.on_train_start(stand_in, module)  # type: ignore[arg-type]

    class Observed(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            for one in callbacks:
                one.on_train_batch_start(stand_in, module, inputs, stand_in.global_step)  # type: ignore[arg-type]
            stand_in.global_step += 1
            loss = super().training_step(model, inputs, *arguments, **named)
            probe.record_loss(loss)
            probe.batch_ended(module)
            return loss

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=module.steps,
            per_device_train_batch_size=module.batch_size,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=module.seed,
            logging_steps=10_000,
            **module.options,
        )
        trainer = Observed(
            model=module.network(),
            args=arguments,
            train_dataset=Rows(module.data()),
            callbacks=[] if own is None else [own],
            optimizers=(optimizer, schedulers[0] if schedulers else None),
        )
        trainer.remove_callback(ProgressCallback)
        logging.getLogger("transformers").setLevel(logging.ERROR)
        trainer.train()
    return None if own is None else own.diagnosis()


def _run(
    module: Case,
    model: Any,
    optimizers: Sequence[Optimizer],
    schedulers: Sequence[Any],
    callbacks: Sequence[Callback],
    probe: Probe,
    watch: GradientWatch | None,
    backward: Callable[[Tensor], Any],
    raw: Sequence[Optimizer] | None = None,
) -> None:
    raw = raw or optimizers
    _observe(raw, probe)
    stand_in, watching = SimpleNamespace(optimizers=raw, global_step=0), Watching(probe, watch)
    module.train()
    for one in callbacks:
        one.on_train_start(stand_in, module)  # type: ignore[arg-type]
    for step, batch in zip(range(module.steps), _endless(module), strict=False):
        for one in callbacks:
            one.on_train_batch_start(stand_in, module, batch, step)  # type: ignore[arg-type]
        module.optimize(model, batch, optimizers, watching, backward)
        for scheduler in schedulers:
            scheduler.step()
        stand_in.global_step += 1
        probe.batch_ended(module)


def _endless(module: Case) -> Iterator[Any]:
    loader = module.loader()
    while True:
        yield from loader


def _configured(module: Case) -> tuple[list[Optimizer], list[Any]]:
    """Return the optimizers and schedulers of a case."""
    made = module.configure_optimizers()
    if isinstance(made, dict):
        return [made["optimizer"]], [made["lr_scheduler"]]
    return (made if isinstance(made, list) else [made]), []


def _observe(optimizers: Sequence[Optimizer], probe: Probe) -> None:
    for one in optimizers:
        one.register_step_pre_hook(lambda optimizer, *_: probe.record_gradients(optimizer))


def _closed(watch: GradientWatch | None) -> Diagnosis | None:
    if watch is None:
        return None
    watch.close()
    return watch.diagnosis()
