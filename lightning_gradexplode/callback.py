"""The callback: thin hooks that hand on to the session, and never let a failure of their own end a training run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_gradexplode.arguments import (
    Arguments,
    checked_detectors,
    checked_flag,
    checked_interval,
    checked_patterns,
    checked_report,
    checked_sample,
    clip_policy,
    responses,
)
from lightning_gradexplode.clip import ClipPolicy
from lightning_gradexplode.detect import Detector, default_detectors
from lightning_gradexplode.distributed.spawn_results import SpawnResults
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.hosts import lightning as _lightning
from lightning_gradexplode.records import Finding, Severity, StepRecord
from lightning_gradexplode.respond import ExplosionError, Response

logger = logging.getLogger("lightning_gradexplode")

P = ParamSpec("P")
R = TypeVar("R")
Hook = Callable[Concatenate["GradientExplosionMonitor", P], R]


def _never_fatal(hook: Hook[P, R]) -> Hook[P, R | None]:
    """Let an error of the monitor's own cost the monitor, told aloud, and not the run."""

    @functools.wraps(hook)
    def guarded(self: GradientExplosionMonitor, /, *args: P.args, **kwargs: P.kwargs) -> R | None:
        if self._broken:
            self._withdraw(hook.__name__)
            return None
        try:
            return hook(self, *args, **kwargs)
        except ExplosionError:
            raise
        except Exception:
            self._broken = True
            logger.exception("gradexplode: the monitor failed and is off from here on; the training goes on without it")
            self._abandon()
            return None

    return guarded


class GradientExplosionMonitor(_lightning.Callback):
    """Sees gradients explode before the run is lost, says where and why, and keeps the run alive if asked to.

    Every optimizer step's gradients are measured as the optimizer is handed them: of the whole accumulation window,
    with the AMP scale divided out, before any clipping. What is found is told once an episode.

    Logged to every logger of the trainer, all under ``gradexplode/``: ``grad_norm`` (L2 norm before clipping),
    ``grad_norm_clipped`` (after), ``grad_max`` (largest absolute value), ``clip_val``, ``clip_rate`` (share of the
    last 100 steps that were clipped), ``update_ratio`` (norm of the weights' change over norm of the weights),
    ``weight_norm``, ``nonfinite_count``, ``severity`` (0 none, 1 info, 2 warning, 3 critical) and ``skipped_steps``;
    and as histograms ``gradient/<parameter>``, ``update/<parameter>`` and ``weight/<parameter>``. The totals are of
    all parameters of the optimizer. ``grad_norm``, ``update_ratio`` and ``severity`` are in
    ``trainer.callback_metrics`` too, under the same names.

    Args:
        log_every_n_steps: Number of steps from one log of scalars to the next; None takes the trainer's own
            ``log_every_n_steps``, 0 is never. After a finding every step is logged for a while.
        histogram_every_n_steps: The same for histograms; None is every tenth log of scalars, 0 is never.
        per_parameter: Log the scalars of every parameter too, not of the whole model only.
        include: Name patterns (``fnmatch``) of the parameters that are shown by themselves, in histograms and scalars.
        exclude: Name patterns of parameters that are not. They still count in the totals.
        detectors: What looks for signs of explosion; None takes `lightning_gradexplode.default_detectors`.
        clip: Clip the gradients: by a constant norm, by a threshold that follows the run (``"auto"``), or by a policy
            of your own. The value is written to ``trainer.gradient_clip_val`` for the same step, and what stood there
            is put back after ``fit``.
        on_explosion: What to do at a critical finding: ``"warn"``, ``"skip"`` (`SkipStep`), ``"reduce-lr"``
            (`ReduceLearningRate`), ``"rollback"`` (`Rollback`), ``"checkpoint"`` (`SaveCheckpoint`), ``"stop"``,
            ``"raise"``, a `Response`, or several of them: then the next one acts when those before it did not help. All
            that act hold back the update of a step at which the explosion is seen before it.
        report: Write the findings and the last steps, up to 512, to ``<log dir>/gradexplode`` at a critical finding,
            or to another folder, or not at all.
        update_sample: Estimate ``update_ratio`` from so many weights, always the same ones, where a second copy of all
            weights does not fit into memory while a step is logged: 10,000 give it to about 1 %. There are no
            histograms of updates then. None compares all weights.

    Raises:
        TypeError: An argument is of a kind that is not taken.
        ValueError: An argument is out of range, or a name is unknown.

    Example:
        >>> monitor = GradientExplosionMonitor(clip="auto")
        >>> monitor.exploded
        False
    """

    def __init__(
        self,
        *,
        log_every_n_steps: int | None = None,
        histogram_every_n_steps: int | None = None,
        per_parameter: bool = False,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        detectors: Sequence[Detector] | None = None,
        clip: float | Literal["auto"] | ClipPolicy | None = None,
        on_explosion: str | Response | Sequence[str | Response] = "warn",
        report: bool | str | Path = True,
        update_sample: int | None = None,
    ) -> None:
        self._settings = Arguments(
            log_every_n_steps=checked_interval("log_every_n_steps", log_every_n_steps),
            histogram_every_n_steps=checked_interval("histogram_every_n_steps", histogram_every_n_steps),
            per_parameter=checked_flag("per_parameter", per_parameter),
            include=checked_patterns("include", include),
            exclude=checked_patterns("exclude", exclude),
            detectors=checked_detectors(default_detectors() if detectors is None else detectors),
            clip=clip_policy(clip),
            responses=tuple(responses(on_explosion)),
            report=checked_report(report),
            update_sample=checked_sample("update_sample", update_sample),
        )
        self._session: TrainingRun | None = None
        self._mailbox = SpawnResults()
        self._brought: list[Finding] = []
        self._state: dict[str, Any] = {}
        self._broken = False
        self._hooks: list[RemovableHandle] = []

    @property
    def findings(self) -> list[Finding]:
        """What was found in this run, oldest first; of more than 1000 findings the latest are kept.

        Where the trainer starts processes of its own (``ddp_spawn``), they are here once the fit has ended.
        """
        if self._session is not None:
            return self._session.chronicle.findings
        self._brought = self._mailbox.take() or self._brought
        return self._brought

    @property
    def exploded(self) -> bool:
        """Whether any finding is critical."""
        return any(finding.severity is Severity.CRITICAL for finding in self.findings)

    @property
    def last(self) -> StepRecord | None:
        """What was measured of the last optimizer step."""
        return None if self._session is None else self._session.last

    def on_train_start(self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule) -> None:
        """Begin to watch a fit."""
        self._broken = False
        self._open(trainer, pl_module)

    @_never_fatal
    def _open(self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule) -> None:
        hidden = _lightning.hidden_gradients(trainer)
        if hidden is not None:
            logger.warning("gradexplode: the monitor is off for this run, it logs and clips nothing: %s", hidden)
            self._session, self._broken = None, True
            return
        state, self._state = self._state, {}
        self._session = TrainingRun(self._settings, trainer, pl_module, self, state)
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    @_never_fatal
    def on_train_batch_start(
        self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a batch."""
        self._watching.batch_starts(batch_idx)

    @_never_fatal
    def on_before_zero_grad(
        self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Judge the step before this one, if nobody has waited for its numbers, before its gradients are cleared."""
        self._watching.catch_up()

    @_never_fatal
    def on_before_backward(
        self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule, loss: Tensor
    ) -> None:
        """Note the loss."""
        self._watching.backward_starts(loss)

    @_never_fatal
    def on_after_backward(self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule) -> None:
        """Measure the gradients, once those of the whole accumulation window are there."""
        self._watching.backward_ended()

    @_never_fatal
    def on_before_optimizer_step(
        self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Judge the gradients that the optimizer is about to be handed; set the clip value; respond.

        Raises:
            ExplosionError: The run explodes and ``on_explosion`` is ``"raise"``.
        """
        self._watching.optimizer_will_step(optimizer)

    @_never_fatal
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._watching.optimizer_steps(optimizer, args, kwargs)

    @_never_fatal
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._watching.optimizer_stepped(optimizer)

    @_never_fatal
    def on_train_batch_end(
        self,
        trainer: _lightning.Trainer,
        pl_module: _lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the step.

        Raises:
            ExplosionError: The run explodes and ``on_explosion`` is ``"raise"``.
        """
        self._watching.batch_ends(outputs)

    def on_validation_start(self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule) -> None:
        """Judge what was not waited for, so that all that validation is asked for is known."""
        self._catch_up()

    def on_train_epoch_end(self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule) -> None:
        """Do the same at the end of an epoch."""
        self._catch_up()

    @_never_fatal
    def _catch_up(self) -> None:
        if self._session is not None:
            self._session.catch_up()

    def on_exception(
        self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule, exception: BaseException
    ) -> None:
        """Log what was measured of the step that was cut short."""
        self._close(trainer, cut_short=True)

    def on_fit_end(self, trainer: _lightning.Trainer, pl_module: _lightning.LightningModule) -> None:
        """Leave the trainer as it was found."""
        self._close(trainer)

    @_never_fatal
    def _close(self, trainer: _lightning.Trainer, cut_short: bool = False) -> None:
        if self._session is None:
            return
        try:
            if cut_short:
                self._session.publish_rest()
        finally:
            self._session.close()
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            if _lightning.runs_in_a_started_process(trainer) and trainer.local_rank == 0:
                self._mailbox.leave(self.findings)

    def _abandon(self) -> None:
        """After a failure, let go of the run, which must not end even if that fails too."""
        try:
            if self._session is not None:
                self._session.close()
        except Exception:
            logger.exception("gradexplode: the monitor could not leave everything as it was found")

    def _withdraw(self, hook: str) -> None:
        """After a failure, tell the other processes at the next point where they exchange what they have seen."""
        if self._session is not None and hook in ("on_before_optimizer_step", "on_train_batch_end"):
            self._session.withdraw(hook == "on_train_batch_end")

    @property
    def _watching(self) -> TrainingRun:
        assert self._session is not None, "Lightning called a training hook before on_train_start"
        return self._session

    def state_dict(self) -> dict[str, Any]:
        """Give what later decisions depend on, in plain values, for the checkpoint."""
        self._catch_up()
        return self._state if self._session is None else self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the next fit goes on from there."""
        self._state = state_dict
