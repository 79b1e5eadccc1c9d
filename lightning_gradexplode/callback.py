"""The monitor as a callback of Lightning. Each hook calls the engine's `TrainingRun`."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.clip import ClipPolicy
from lightning_gradexplode.detect import Detector
from lightning_gradexplode.distributed.spawn_results import SpawnResults
from lightning_gradexplode.engine.failure import MONITOR_FAILED_AT_START, MONITOR_IS_OFF
from lightning_gradexplode.engine.joint_start import DifferentProcessesError
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.hosts.fit_state import FitState
from lightning_gradexplode.hosts.lightning import (
    LightningLoop,
    runs_in_a_started_process,
    save_again,
    unsupported_strategy,
)
from lightning_gradexplode.hosts.lightning_callbacks import monitors_of
from lightning_gradexplode.hosts.lightning_namespaces import Callback, LightningModule, Trainer
from lightning_gradexplode.hosts.results import EndedRun, RunResults
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.respond import Response


class GradientExplosionMonitor(RunResults, Callback):
    """Measure gradients and weight changes of every optimizer step, and report, explain and remedy explosions.

    The gradients are measured as the optimizer receives them: accumulated, with the AMP scale divided out, before any
    clipping.

    Logged to every logger of the trainer, all under ``gradexplode/``: ``grad_norm`` (L2 norm before clipping),
    ``grad_norm_clipped`` (after), ``grad_max`` (largest absolute value), ``clip_val``, ``clip_rate`` (share of the
    last 100 steps that were clipped), ``update_ratio`` (norm of the weight change divided by norm of the weights),
    ``weight_norm``, ``nonfinite_count``, ``severity`` (0 none, 1 info, 2 warning, 3 critical) and ``skipped_steps``;
    and as histograms ``gradient/<parameter>``, ``update/<parameter>`` and ``weight/<parameter>``. With several
    optimizers these cover all optimizers that stepped in the batch, and those of each optimizer are logged under
    ``gradexplode/optimizer_<i>/``. ``grad_norm``, ``update_ratio`` and ``severity`` are also in
    ``trainer.callback_metrics``, under the same names.

    Args:
        log_every_n_steps: Number of steps between two logs of scalars. None uses the trainer's ``log_every_n_steps``, 0
            disables them. After a finding every step is logged for a while.
        histogram_every_n_steps: Number of steps between two logs of histograms. None is every tenth log of scalars, 0
            disables them.
        per_parameter: Whether to log the scalars of each parameter in addition to those of the whole model.
        include: Name patterns (``fnmatch``) of the parameters whose histograms and scalars are logged.
        exclude: Name patterns of parameters whose histograms and scalars are not logged. They count in the totals.
        detectors: The detectors of explosions. None uses `lightning_gradexplode.default_detectors`.
        ignore: Signs that are not detected, such as ``"stalled-loss"``.
        clip: How the gradients are clipped: by a constant norm, by a threshold that adapts to the run (``"auto"``), or
            by a `ClipPolicy`; None does not clip. The value is assigned to ``trainer.gradient_clip_val`` for the same
            step; the user's own is restored after ``fit``.
        on_explosion: What to do at a critical finding: ``"warn"`` (only log it), ``"skip"`` (skip the update),
            ``"reduce-lr"`` (lower the learning rate), ``"rollback"`` (restore an earlier state), ``"checkpoint"`` (save
            a checkpoint), ``"stop"`` (end the training), ``"raise"`` (raise an `ExplosionError`), a `Response`, or a
            list of these: each acts if those before it did not help. ``"skip"``, ``"reduce-lr"``, ``"rollback"`` and
            ``"stop"`` skip an update if the explosion is found before it.
        alert_level: Lowest severity for which loggers send alerts, ``"warning"`` or ``"critical"``.
        diagnose: Whether to find the cause of critical incidents by computing the step again on a copy of the module,
            and whether a ``training_step`` that returns None has tested a value that is NaN or infinite.
            ``training_step`` then runs a second time; at most 3 steps per run are computed again.
        report: Whether to write findings, diagnosis and up to 512 of the last steps to ``<log dir>/gradexplode`` at a
            critical finding; ``"always"`` also writes a report of healthy runs; a path sets another folder.
        update_sample: Number of weights, the same at each step, from which ``update_ratio`` is estimated: for models
            with too little memory for a second copy of all weights at logged steps. The error is about 1 % with 10,000
            weights. Histograms of updates are not logged then. None compares all weights.

    Raises:
        TypeError: An argument is of a type that is not accepted.
        ValueError: An argument is out of range, or a name is unknown.

    Example:
        >>> monitor = GradientExplosionMonitor(clip="auto")
        >>> monitor.exploded
        False
    """

    arguments: Arguments
    """The checked arguments."""

    is_automatic: ClassVar[bool] = False
    """Whether the environment has added the monitor; it is disabled if the user passes one."""

    def __init__(
        self,
        *,
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
        self._run: TrainingRun | None = None
        self._ended = EndedRun()
        self._fit_state = FitState()
        self._is_disabled = self._names_disabled = False
        self._state_key = ""
        self._spawn_results = SpawnResults()

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint: the class's name, with ``-2`` for a second monitor of a trainer.

        Before `setup` it is a random one, since a trainer refuses several callbacks with the same key.
        """
        return self._state_key or uuid.uuid4().hex

    @property
    def _results(self) -> TrainingRun | EndedRun:
        """The run in progress, else the latest one; where the trainer starts processes, once these have ended."""
        if self._run is not None:
            return self._run
        spawned = self._spawn_results.take()
        if spawned is not None:
            self._ended = EndedRun(**spawned)
        return self._ended

    # Lightning's hooks, in the order of a fit.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a stage.

        Only the first of several monitors of a trainer is active, since all of them would log the same names.
        """
        self._fit_state.begin_stage(stage)
        monitors = monitors_of(trainer, GradientExplosionMonitor)
        active = min(monitors, key=lambda one: one.is_automatic, default=self)
        alike = [one for one in monitors if type(one) is type(self)]
        place = alike.index(self) if self in alike else 0
        self._is_disabled = active is not self
        self._names_disabled = next((one for one in alike if one is not active), None) is self  # one line for all
        self._state_key = type(self).__qualname__ + (f"-{place + 1}" if place else "")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to monitor a fit."""
        self._spawn_results.take()  # those of an earlier fit
        self._run, self._ended = None, EndedRun()
        if self._is_disabled:
            if trainer.is_global_zero and self._names_disabled:
                self._log_disabled()
            return
        unsupported = unsupported_strategy(trainer)
        if unsupported is not None:
            logger.warning(MONITOR_IS_OFF, unsupported)
            return
        state = self._fit_state.take(pl_module)
        try:
            self._run = TrainingRun(self.arguments, LightningLoop(trainer, self), state)
        except DifferentProcessesError as error:
            self._ended = EndedRun(failed=True)
            logger.warning(MONITOR_IS_OFF, error)
        except Exception:
            self._ended = EndedRun(failed=True)
            logger.exception(MONITOR_FAILED_AT_START)

    def _log_disabled(self) -> None:
        logger.warning("gradexplode: the trainer has several monitors; one is enough, and all but the first are off")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a batch."""
        if self._run is not None:
            self._run.batch_started(batch, batch_idx)

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Read the deferred numbers of the step before, before its gradients are cleared."""
        if self._run is not None:
            self._run.gradients_cleared()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Record the loss, and read its graph if it is not finite."""
        if self._run is not None:
            self._run.loss_computed(loss, has_graph=True)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the gradients, once those of all micro-batches are accumulated."""
        if self._run is not None:
            self._run.backward_ended()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Detect, decide the clip value and respond.

        Raises:
            ExplosionError: The run explodes and ``on_explosion`` is ``"raise"``.
        """
        if self._run is not None:
            self._run.gradients_ready(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step.

        Raises:
            ExplosionError: The run explodes and ``on_explosion`` is ``"raise"``.
        """
        if self._run is not None:
            self._run.batch_ended(outputs)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read deferred numbers before validation, and at the end of an epoch."""
        if self._run is not None:
            self._run.finish_deferred()

    on_train_epoch_end = on_validation_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Log what was measured of the step that was interrupted."""
        if self._run is not None:
            self._run.aborted(exception)
            self._close(trainer)
        self._release_module()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the trainer."""
        self._close(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End a stage."""
        self._fit_state.end_stage()
        self._release_module()

    def _release_module(self) -> None:
        """Remove the methods of the module that Lightning assigns to each callback for a stage."""
        for name in ("log", "log_dict"):
            vars(self).pop(name, None)

    def _close(self, trainer: Trainer) -> None:
        """Release trainer and module, and keep the results."""
        run, self._run = self._run, None
        if run is None:
            return
        incident = run.diagnosis()
        if self.arguments.report == "always" and not run.failed:
            run.report()
        folder = run.report_folder
        run.close()
        self._ended = EndedRun(run.findings, run.last, run.failed, incident, folder)
        try:
            self._fit_state.state = run.state_dict()
            if runs_in_a_started_process(trainer) and trainer.local_rank == 0:
                self._spawn_results.leave({one.name: getattr(self._ended, one.name) for one in fields(self._ended)})
        except Exception:
            logger.exception("gradexplode: the state of the monitor is lost after this fit")

    # State.

    def state_dict(self) -> dict[str, Any]:
        """Return what later decisions depend on, in plain values, for the checkpoint."""
        if self._run is None:
            return self._fit_state.state
        self._run.flush()
        return self._run.state_dict()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put into the checkpoint what follows from the step before it; all processes call this."""
        if self._run is None or trainer.interrupted:  # the other processes may have ended
            return
        changed = self._run.finish_before_checkpoint()
        if changed:
            save_again(trainer, checkpoint)
        if changed is not None:
            checkpoint["callbacks"][self.state_key] = self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned; the next fit continues from it."""
        self._fit_state.load(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """Return the monitor without the run in progress, which belongs to this process and this object only."""
        state = {**vars(self), "_run": None}
        return {name: value for name, value in state.items() if name not in ("log", "log_dict")}
