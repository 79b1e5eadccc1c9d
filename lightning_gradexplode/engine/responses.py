"""Calls of the responses with the findings of a run, and the number of updates that they hold back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_gradexplode.engine.accumulation import unscales_itself
from lightning_gradexplode.engine.optimizer_state import OptimizerState
from lightning_gradexplode.engine.state import load_parts, save_parts
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.part_guard import PartGuard
from lightning_gradexplode.records import Attempt, Finding, Severity, StepRecord
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.repeats import Repeats
from lightning_gradexplode.records.text import few
from lightning_gradexplode.respond import Response, ResponseChain, ResponseContext
from lightning_gradexplode.respond.buffer_check import BufferCheck
from lightning_gradexplode.respond.buffer_copies import BufferCopies
from lightning_gradexplode.respond.buffers import is_finite


class ResponseRunner:
    """Calls the responses of a run, and counts the updates that they hold back.

    Args:
        loop: The training loop.
        responses: The responses, in their order.
        states: The optimizers, whose state is restored with the weights if a response restores these.

    Attributes:
        skipped: Number of updates that were held back.
        adds_gradients: Whether any response adds to the gradients.
    """

    def __init__(self, loop: TrainingLoop, responses: Sequence[Response], states: Sequence[OptimizerState]) -> None:
        self.skipped = 0
        self._loop = loop
        self._chain = ResponseChain(responses)
        self.adds_gradients = self._chain.adds_gradients
        self._memory = _Memory(states)
        self._buffers = BufferCopies(loop.module, lambda: loop.averaged_modules)
        self._buffers_guard = PartGuard(self._buffers, "part")
        self._buffer_check = BufferCheck(loop.module)
        self._buffer_check_guard = PartGuard(self._buffer_check, "part")
        self._repeats = Repeats()
        self._held_back = False

    def start(self) -> None:
        """Begin a fit."""
        if self._chain.has_remedy:
            self._buffers_guard.call(self._buffers.start, otherwise=None)
            self._buffer_check_guard.call(self._buffer_check.run, True, True, otherwise=None)
        self._chain.started(ResponseContext(self._loop, memory=self._memory, last_step=self._loop.step - 1))

    @property
    def attempts(self) -> Sequence[Attempt]:
        """The actions of the responses, oldest first."""
        return self._chain.log.attempts

    def gradients_ready(self, optimizer: Optimizer, batch_idx: int) -> None:
        """Call the responses that add to the gradients of an optimizer, once they are complete.

        Args:
            optimizer: The optimizer.
            batch_idx: Index of the batch that completes them.
        """
        automatic = self._loop.is_automatic and not self._loop.counts_end_of_backward
        is_scaled = automatic or unscales_itself(optimizer)
        scale = self._loop.loss_scale()[0] if is_scaled else None
        share = self._loop.filled_share(batch_idx) if automatic else 1.0
        context = ResponseContext(self._loop, before_update=True, optimizer=optimizer)
        self._chain.gradients_ready(context, share if scale is None else share * float(scale))

    def respond(self, step: Step, findings: Sequence[Finding], before_update: bool) -> None:
        """Call the responses with a step's CRITICAL findings."""
        critical = [finding for finding in findings if finding.severity is Severity.CRITICAL]
        is_finite = step.grad_norm is not None and math.isfinite(step.grad_norm)
        if not critical and (is_finite or not before_update):
            return
        context = self._context(step.record(), before_update, step.state.optimizer)
        if critical:
            self._chain.respond(critical, context)
        else:
            self._chain.guard(context)
        if context.update_is_held_back:
            self.hold_back(step, context.skipped_by)

    def hold_back(self, step: Step, reason: str | None) -> None:
        """Record that the coming update of a step is skipped, with the reason."""
        self.skipped += 1
        self._held_back = True
        step.set(skipped_by=reason, skipped_steps=self.skipped)

    def incident_ended(self) -> None:
        """Begin with the first response again at the next incident."""
        self._chain.incident_ended()

    def step_begins(self, optimizer: Optimizer) -> None:
        """Prepare an optimizer's step."""
        self._chain.step_begins(optimizer)

    def step_ended(self, optimizer: Optimizer) -> None:
        """Undo what `step_begins` prepared."""
        self._chain.step_ended(optimizer)

    def batch_ended(self, records: Sequence[StepRecord], is_deferred: bool) -> None:
        """Call the responses at the end of a batch.

        Args:
            records: The steps, taken or held back, whose records became final in this batch.
            is_deferred: Whether the numbers of a step are not read yet.
        """
        if not records and not is_deferred:
            return
        context = None
        if records:
            context = self._context(records[-1])
            context.severity = max(record.severity for record in records)
        if self._chain.has_remedy:
            left_out, self._held_back = self._held_back, False
            if context is not None and (left_out or any(record.update_taken is False for record in records)):
                # Not before the update: a retained graph may need the tensors unchanged.
                nothing: tuple[list[str], list[str]] = [], []
                self._chain.log_buffers(context, *self._buffers_guard.call(self._buffers.restore, otherwise=nothing))
            self._buffers_guard.call(self._buffers.update, is_deferred, otherwise=None)
        if context is not None and self._chain.uses_batch_end:
            self._chain.batch_ended(context)

    def check_buffers(self, step: int, now: bool = False, steps: int = 1) -> None:
        """Log buffers that training changes and that are not finite, and restore them where a response acts.

        Args:
            step: The step that has ended.
            now: Whether to check now, and not only if a check is due.
            steps: Number of steps since the last call.
        """
        check, acts = self._buffer_check.run, self._chain.has_remedy
        names = self._buffer_check_guard.call(check, acts, now, steps, otherwise=list[str]())
        if not names:
            return
        is_restored = acts and self._buffer_check_guard.call(self._buffer_check.restore, otherwise=False)
        if self._loop.is_main_process and self._repeats.is_due(f"buffers {is_restored}", 3 if is_restored else 1):
            logger.warning(
                "gradexplode at step %d: buffers that training changes are not finite: %s; %s",
                step,
                few(names),
                "they are restored from the last finite ones"
                if is_restored
                else "they stay so, and the model fails in evaluation; reset them or load an earlier checkpoint",
            )

    def log_notice(self, state: OptimizerState, record: StepRecord) -> None:
        """Log the notice of an optimizer's clip policy about a step, if there is one."""
        notice = None if state.policy is None else state.policy.notice()
        if notice is not None:
            self._chain.log.add(self._context(record), "clip", notice)

    def with_scalars(self, record: StepRecord, state: OptimizerState) -> StepRecord:
        """Return a record with the scalars that the responses and the clip policy log."""
        scalars = self._chain.scalars()
        if state.policy is not None:
            scalars = {**scalars, **state.policy.scalars()}
        return replace(record, responses=scalars) if scalars else record

    def close(self) -> None:
        """Restore the optimizers, release the states that responses hold, and log if the weights are not finite."""
        self._chain.ended()
        if self._chain.has_remedy:
            named = self._loop.module.named_parameters()
            self._log_nonfinite("parameters", [name for name, one in named if not is_lazy(one) and not is_finite(one)])
            buffers = self._buffers_guard.call(self._buffers.nonfinite_names, otherwise=list[str]())
            self._log_nonfinite("buffers", buffers)
        self._buffers.clear()
        self._buffer_check.clear()

    def _log_nonfinite(self, kind: str, names: Sequence[str]) -> None:
        """Log the parts of the model that are not finite at the end of a fit, after averages were copied into it."""
        if names:
            averages = ", ".join(self._loop.averaged_modules)
            logger.warning(
                "gradexplode: at the end of the fit %d %s are not finite, the first is %s%s; load an earlier "
                "checkpoint",
                len(names),
                kind,
                names[0],
                f" ({averages} may have copied its averages into the model)" if averages else "",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later decisions depend on, in plain values."""
        return {"skipped_steps": self.skipped, "chain": self._chain.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the state that `state_dict` returned.

        Returns:
            Names of the parts whose state does not fit and is not restored.
        """
        self.skipped = int(state["skipped_steps"])
        return self._chain.load_state_dict(state["chain"])

    def _context(
        self, record: StepRecord, before_update: bool = False, optimizer: Optimizer | None = None
    ) -> ResponseContext:
        return ResponseContext(self._loop, before_update, optimizer, record, self._memory, record.severity)


class _Memory:
    """The state of all optimizers' detectors and clip policies, as one."""

    def __init__(self, states: Sequence[OptimizerState]) -> None:
        self._states = states

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain values."""
        return save_parts({f"optimizer_{state.index}": state for state in self._states})

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        load_parts({f"optimizer_{state.index}": state for state in self._states}, saved)

    def largest_step_sizes(self) -> list[float | None]:
        """Return the largest learning rate of the last steps, of each clip policy that changes it, else None."""
        return [None if state.policy is None else state.policy.largest_step_size() for state in self._states]

    def limit_step_sizes(self, sizes: Sequence[float | None]) -> None:
        """Keep the learning rates of later steps below these, one for each optimizer."""
        for state, size in zip(self._states, sizes, strict=True):
            if state.policy is not None and size is not None:
                state.policy.limit_step_size(size)
