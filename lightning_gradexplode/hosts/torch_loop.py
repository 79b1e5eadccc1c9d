"""The monitor in a training loop of plain PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip import ClipPolicy
from lightning_gradexplode.clip.apply import drop_gradients
from lightning_gradexplode.detect import Detector
from lightning_gradexplode.distributed.process_group import ALONE, Processes, ProcessGroup
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.csv_log import CSVLog
from lightning_gradexplode.records import Diagnosis, Finding, Severity, StepRecord
from lightning_gradexplode.respond import ExplosionError, Response

logger = logging.getLogger("lightning_gradexplode")


class TorchLoop(TrainingLoop):
    """A training loop of the user's own, which calls backward and the optimizers by itself.

    Args:
        model: The network, or the wrapper of it by ``DistributedDataParallel`` or ``torch.compile``.
        optimizers: Its optimizers.
        loggers: Where metrics go.
        folder: The folder of the run's logs, None for that of the first logger.
        scaler: The gradient scaler, None without one.
        replay: Computes the loss of a batch with a copy of the model, None where steps cannot be computed again.

    Attributes:
        batches: Number of batches in which an optimizer stepped.
        batch_is_known: Whether the current batch was given.
        should_stop: Whether the training is to end.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        loggers: Sequence[Any],
        folder: Path | None,
        scaler: Any,
        replay: Callable[[Any, Any], Any] | None,
    ) -> None:
        self.batches = 0
        self.batch_is_known = False
        self.should_stop = False
        self._module = _unwrapped(model)
        self._optimizers, self._loggers, self._folder = list(optimizers), list(loggers), folder
        self._scaler, self._replay = scaler, replay
        self._process_group = _process_group(self._module)

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    @property
    def optimizers(self) -> Sequence[Optimizer]:
        """The optimizers."""
        return self._optimizers

    @property
    def step(self) -> int:
        """Number of batches in which an optimizer stepped."""
        return self.batches

    @property
    def process_group(self) -> ProcessGroup:
        """The processes that ``torch.distributed`` joins."""
        return self._process_group

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0."""
        return self._process_group is ALONE or torch.distributed.get_rank() == 0

    def settings(self) -> Mapping[str, Any]:
        """Return the kind of gradient scaler."""
        scale, adapts = self.loss_scale()
        return {"scaler": "none" if scale is None else "adaptive" if adapts else "static"}

    def loss_scale(self) -> tuple[Tensor | None, bool]:
        """Return the scale of the gradient scaler, and whether it adapts."""
        scaler = self._scaler
        if scaler is None or not scaler.is_enabled():
            return None, False
        scale = getattr(scaler, "_scale", None)  # `GradScaler.get_scale` would wait for an accelerator
        return torch.tensor(scaler.get_scale()) if scale is None else scale, scaler.get_backoff_factor() < 1.0

    @property
    def gradients_are_final(self) -> bool:
        """Always, so that they are measured at the end of each backward pass."""
        return True

    @property
    def counts_end_of_backward(self) -> bool:
        """Always, since the user may clip between the backward pass and the step."""
        return True

    @property
    def may_change_gradients(self) -> bool:
        """Always."""
        return True

    @property
    def overrides_clipping(self) -> bool:
        """Always, since the user may clip."""
        return True

    @property
    def loggers(self) -> Sequence[Any]:
        """The loggers."""
        return self._loggers

    def log_folder(self) -> Path:
        """Return the folder that was given, else that of the first logger, else the working directory."""
        own = next((path for path in (getattr(one, "log_dir", None) for one in self._loggers) if path), Path.cwd())
        return Path(own) if self._folder is None else self._folder

    @property
    def can_stop(self) -> bool:
        """Always."""
        return True

    def stop(self) -> None:
        """Set `should_stop`, from which on updates are held back."""
        self.should_stop = True

    @property
    def scaler(self) -> Any:
        """The gradient scaler."""
        return self._scaler

    @property
    def can_replay(self) -> bool:
        """Whether ``step=`` was given, and the batch is known."""
        return self._replay is not None and self.batch_is_known

    def replay_loss(self, copy: Any, batch: Any, batch_idx: int) -> Any:
        """Call the function that was given as ``step``."""
        assert self._replay is not None
        return self._replay(copy, batch)


class GradientWatch:
    """Measure, report, explain and remedy explosions in a training loop of plain PyTorch.

    Gradients are measured at the end of the backward pass of each loss that is given to `loss`, before the loop's own
    clipping; all that are added up for one optimizer step count together. A batch ends when each optimizer has
    stepped, or one steps again. Metrics have the names that `GradientExplosionMonitor` logs.

    Args:
        model: The network.
        optimizer: Its optimizer, or a list of several.
        loggers: ``SummaryWriter``, W&B runs, or objects with ``log_metrics(metrics=, step=)``; with none and a
            ``log_dir``, scalars are written to ``gradexplode.csv`` there.
        log_dir: Folder of the run's logs; reports are written to ``gradexplode`` inside.
        scaler: The ``torch.amp.GradScaler`` of the loop.
        step: Computes the loss of a batch from a copy of the model and the batch, so that a step can be computed
            again for the diagnosis; the batch is known by `batch`.
        log_every_n_steps: As in `GradientExplosionMonitor`, as all that follow; None is 50.
        histogram_every_n_steps: See there.
        per_parameter: See there.
        include: See there.
        exclude: See there.
        detectors: See there.
        ignore: See there.
        clip: See there; the gradients are clipped right before the optimizer's step.
        on_explosion: See there; ``"stop"`` sets `should_stop`.
        alert_level: See there.
        diagnose: See there.
        report: See there.
        update_sample: See there.

    Raises:
        TypeError: An argument is of a type that is not accepted.
        ValueError: An argument is out of range, or a name is unknown.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with GradientWatch(model, optimizer, report=False) as watch:
        ...     for batch in [torch.ones(4, 2)] * 3:
        ...         optimizer.zero_grad()
        ...         loss = model(batch).square().mean()
        ...         watch.loss(loss)
        ...         loss.backward()
        ...         optimizer.step()
        >>> watch.last.step
        2
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        loggers: Sequence[Any] = (),
        log_dir: str | Path | None = None,
        scaler: Any = None,
        step: Callable[[Any, Any], Any] | None = None,
        log_every_n_steps: int | None = None,
        histogram_every_n_steps: int | None = None,
        per_parameter: bool = False,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        detectors: Sequence[Detector] | None = None,
        ignore: Sequence[str] = (),
        clip: float | Literal["auto"] | ClipPolicy | None = None,
        on_explosion: str | Response | Sequence[str | Response] = "warn",
        alert_level: Literal["warning", "critical"] = "critical",
        diagnose: bool = True,
        report: bool | Literal["always"] | str | Path = True,
        update_sample: int | None = None,
    ) -> None:
        self.arguments = Arguments.checked(
            log_every_n_steps=log_every_n_steps,
            histogram_every_n_steps=histogram_every_n_steps,
            per_parameter=per_parameter,
            include=include,
            exclude=exclude,
            detectors=detectors,
            ignore=ignore,
            clip=clip,
            on_explosion=on_explosion,
            alert_level=alert_level,
            diagnose=diagnose,
            report=report,
            update_sample=update_sample,
        )
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        if not optimizers or not all(isinstance(one, Optimizer) for one in optimizers):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or a list of them, got {optimizer!r}")
        folder = None if log_dir is None else Path(log_dir)
        written = list(loggers) or ([] if folder is None else [CSVLog(folder)])
        self._loop = TorchLoop(model, optimizers, written, folder, scaler, step)
        self._run: TrainingRun | None = None
        self._hooks: list[Any] = []
        self._failed = False
        self._begin({})

    def _begin(self, state: Mapping[str, Any]) -> None:
        """Begin a run; our pre-step hooks come before the engine's, and our post-step hooks after them."""
        self._batch_idx = -1
        self._marks_batches = self._in_batch = False
        self._stepped: set[int] = set()
        self._evaluating: Optimizer | None = None
        self._awaits_step = False
        optimizers = self._loop.optimizers
        try:
            self._hooks = [one.register_step_pre_hook(self._before_step) for one in optimizers]
            self._run = TrainingRun(self.arguments, self._loop, state)
            self._hooks += [one.register_step_post_hook(self._after_step) for one in optimizers]
        except Exception:
            self._fail()

    # What the training loop calls.

    def batch(self, batch: Any) -> None:
        """Mark the begin of a batch, or of a micro-batch; without it batches are not looked at in a diagnosis.

        Args:
            batch: What the model is about to get.
        """
        self._marks_batches = True
        self._guarded(self._start_batch, batch, True)

    def loss(self, loss: Tensor) -> None:
        """Arm the measurement of the gradients at the end of the backward pass of a loss.

        Args:
            loss: The loss, before a gradient scaler scales it, of one element.
        """
        if self._run is None or not isinstance(loss, Tensor) or not loss.requires_grad:
            return

        def backward_begins(gradient: Tensor) -> None:
            self._guarded(self._backward_begins)
            self._after_backward(lambda: self._after_backward(lambda: self._guarded(self._backward_ended, loss)))

        loss.register_hook(backward_begins)  # type: ignore[no-untyped-call]

    @staticmethod
    def _after_backward(call: Callable[[], None]) -> None:
        """Call a function at the end of the backward pass, after those that are registered already."""
        torch.autograd.Variable._execution_engine.queue_callback(call)

    def close(self) -> None:
        """End the run, and remove all hooks; the results stay."""
        run = self._run
        if run is None or not self._hooks:
            return
        self._guarded(self._end_batch)
        run.flush()
        if self.arguments.report == "always" and not run.failed:
            run.report()
        self._remove_hooks()

    def __enter__(self) -> GradientWatch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and self._run is not None:
            self._run.aborted()
        self.close()

    # Results.

    @property
    def findings(self) -> list[Finding]:
        """What was found in this run, oldest first; of more than 1000 findings the latest are kept."""
        return [] if self._run is None else self._run.findings

    @property
    def exploded(self) -> bool:
        """Whether any finding is critical."""
        return any(finding.severity is Severity.CRITICAL for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether the monitor has failed in this run and is off."""
        return self._failed or (self._run is not None and self._run.failed)

    @property
    def should_stop(self) -> bool:
        """Whether a response has stopped the training; the loop has to end, and updates are held back."""
        return self._loop.should_stop

    @property
    def last(self) -> StepRecord | None:
        """What was measured of the last optimizer step."""
        return None if self._run is None else self._run.last

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the latest incident of this run, None if there was none."""
        return None if self._run is None else self._run.diagnosis()

    @property
    def report_folder(self) -> Path | None:
        """The folder with the report of this run, None if there is none."""
        return None if self._run is None else self._run.report_folder

    def report(self) -> Path | None:
        """Write a report of the run as it is now, and return its folder; None where no reports are written."""
        return None if self._run is None else self._run.report()

    def state_dict(self) -> dict[str, Any]:
        """Return what later decisions depend on, in plain values, for a checkpoint."""
        if self._run is None:
            return {}
        self._run.flush()
        return {**self._run.state_dict(), "batches": self._loop.batches}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._remove_hooks()
        self._loop.batches = int(state_dict.get("batches", 0))
        self._begin(state_dict)

    # The optimizers' hooks, and the ends of backward passes.

    def _start_batch(self, batch: Any, is_known: bool) -> None:
        if self._stepped:
            self._end_batch()
        self._batch_idx += 1
        self._in_batch, self._loop.batch_is_known = True, is_known
        if self._run is not None:
            self._run.batch_started(batch, self._batch_idx)

    def _end_batch(self) -> None:
        """End a batch, if an optimizer has stepped in it."""
        if self._stepped and self._run is not None:
            self._stepped, self._in_batch = set(), False
            self._run.batch_ended()
            self._loop.batches += 1

    def _backward_begins(self) -> None:
        if self._run is not None and self._is_cleared:
            self._end_left_out_step()
            self._run.gradients_cleared()
        if not self._in_batch:
            self._start_batch(None, False)

    @property
    def _is_cleared(self) -> bool:
        """Whether no optimizer has a gradient."""
        return all(one.grad is None for optimizer in self._loop.optimizers for one in _parameters(optimizer))

    def _end_left_out_step(self) -> None:
        """Record a step that the gradient scaler has left out, of which no hook is called, for a single optimizer."""
        optimizers = self._loop.optimizers
        if not self._awaits_step or len(optimizers) > 1 or self._loop.loss_scale()[0] is None or self._run is None:
            return
        self._awaits_step = False
        self._run.gradients_ready(optimizers[0])
        self._stepped.add(id(optimizers[0]))
        self._end_batch()

    def _backward_ended(self, loss: Tensor) -> None:
        run, optimizer = self._run, self._evaluating
        if run is None:
            return
        scale = self._loop.loss_scale()[0]
        with torch.no_grad():
            run.loss_computed(loss if scale is None else loss * scale.to(loss.device))
            run.backward_ended()
            self._awaits_step = True
            if optimizer is not None:
                run.gradients_ready(optimizer)
                if self.should_stop:
                    drop_gradients(optimizer)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded(self._step_begins, optimizer, len(args) > 1 or kwargs.get("closure") is not None)

    def _step_begins(self, optimizer: Optimizer, has_closure: bool) -> None:
        if self.should_stop:
            drop_gradients(optimizer)
            return
        if id(optimizer) in self._stepped and not self._marks_batches:
            self._end_batch()
        if not self._in_batch:
            self._start_batch(None, False)
        if has_closure:
            self._evaluating = optimizer
        elif self._run is not None:
            with torch.no_grad():
                self._run.gradients_ready(optimizer)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guarded(self._step_ended, optimizer)

    def _step_ended(self, optimizer: Optimizer) -> None:
        self._evaluating, self._awaits_step = None, False
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._loop.optimizers):
            self._end_batch()

    # Failure.

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call a function of ours, whose failure switches the monitor off and does not reach the training loop."""
        if self._run is None:
            return
        try:
            call(*arguments)
        except ExplosionError:
            raise
        except Exception:
            self._fail()

    def _fail(self) -> None:
        self._failed = True
        logger.exception("gradexplode: the monitor failed and is off; the training goes on without it")
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()
        if self._run is not None:
            self._run.close()


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the network within the wrappers of ``torch.compile`` and ``DistributedDataParallel``."""
    inner = getattr(model, "_orig_mod", None)
    if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
    return _unwrapped(inner) if isinstance(inner, nn.Module) else model


def _process_group(module: nn.Module) -> ProcessGroup:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return ALONE
    if torch.distributed.get_world_size() == 1:
        return ALONE
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return Processes(torch.distributed.get_world_size(), device)
