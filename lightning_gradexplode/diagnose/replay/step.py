"""One training step of the run, described so that it can be computed again on a copy."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.diagnose.replay.attribute_state import AttributeState
from lightning_gradexplode.diagnose.replay.batch import KeptBatch, map_batch
from lightning_gradexplode.diagnose.replay.copies.copyable import unwrapped
from lightning_gradexplode.diagnose.replay.copies.module_copy import LossReached, ModuleCopy
from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.observation.guard import Guard
from lightning_gradexplode.diagnose.replay.observation.private_arrays import PrivateArrays
from lightning_gradexplode.diagnose.replay.random_state import RandomState, random_state
from lightning_gradexplode.records.text import first_line

_NO_MEMORY = ("out of memory", "allocate memory")
"""Parts of torch's error messages when memory is exhausted, on accelerators and on processors."""


@dataclass(frozen=True, slots=True, eq=False)
class ReplayStep:
    """A training step of the run, described so that it can be computed again.

    Args:
        module: The module of the run.
        run_step: Computes the step: called with a copy of the module, the batch and its index, returns the loss, a
            mapping with ``"loss"``, or None where the step runs the backward pass itself.
        batch: The batch that the step received: a `KeptBatch`, or the batch itself.
        batch_idx: Its index in the epoch.
        random_state: The state of the random generators when the step began; None for any.
        context: Returns the context that the step ran in, such as autocast.
        loss_scale: What the loss was multiplied by before the backward pass.
        weights: Tensors to use in place of the module's parameters and buffers of that name, such as the weights
            before an update that has been taken since.
        attributes: Numbers and generators of the module when the step began; None for those that it holds now.
        optimizers: The optimizers of the run; empty for those of the module's trainer.
        stepped: How often those at some places have stepped since the step began, as in manual optimization.
        is_updated: Whether the optimizer has stepped since, and the weights before are not known.
        step_seconds: How long an ordinary step takes; the budget is measured by it.
    """

    module: nn.Module
    run_step: Callable[[Any, Any, int], Any]
    batch: Any
    batch_idx: int = 0
    random_state: RandomState | None = None
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    loss_scale: float = 1.0
    weights: Mapping[str, Tensor] | None = None
    attributes: AttributeState | None = None
    optimizers: Sequence[Optimizer] = ()
    stepped: Mapping[int, int] = field(default_factory=dict)
    is_updated: bool = False
    step_seconds: float = 0.0

    @property
    def kept_batch(self) -> Any:
        """The batch as it was kept."""
        return self.batch.batch if isinstance(self.batch, KeptBatch) else self.batch

    def fresh_batch(self) -> Any:
        """Return a copy of the batch's containers, with its tensors detached."""
        return map_batch(self.kept_batch, _detached)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices of the parameters."""
        return tuple({parameter.device for parameter in self.module.parameters()})

    def copy(self, deadline: float, **settings: Any) -> ModuleCopy:
        """Copy the module.

        Raises:
            ReplayStopped: No copy can be made, or there is no memory for the step.
        """
        if isinstance(self.batch, KeptBatch) and not self.batch.is_unchanged:
            raise ReplayStopped("the step changes its batch in place")
        for device in self.devices:
            _require_memory(device)
        settings = {"weights": self.weights, "loss_scale": self.loss_scale} | settings
        return ModuleCopy(
            self.module,
            attributes=self.attributes,
            optimizers=self.optimizers,
            stepped=self.stepped,
            deadline=deadline,
            **settings,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The result of a step on a copy.

    Args:
        losses: The loss of each backward pass, else the loss that the step returned.
        returned: The loss that the step returned.
        stopped: Why the step ended early; empty if it did not.
        has_raised: Whether the step itself ended it, by an exception.
    """

    losses: tuple[Tensor, ...]
    returned: Tensor | None
    stopped: str = ""
    has_raised: bool = False

    @property
    def values(self) -> tuple[float, ...]:
        """The losses as numbers."""
        return tuple(float(one.float().mean()) for one in self.losses)


def compute(
    step: ReplayStep,
    copy: ModuleCopy,
    guard: Guard,
    *,
    batch: Any = None,
    backward: bool = True,
    context: AbstractContextManager[Any] | None = None,
) -> Outcome:
    """Compute a step on a copy.

    Args:
        step: The step.
        copy: The copy.
        guard: The dispatch mode it runs under.
        batch: A batch in place of the step's own.
        backward: Whether the backward pass is run; else the step ends where the first one would begin.
        context: A context in place of the step's own.
    """
    copy.stop_at_loss = not backward
    returned: Tensor | None = None
    stopped, has_raised = "", False
    batch = step.fresh_batch() if batch is None else batch
    with _untouched(step):
        try:
            with guard, PrivateArrays(guard.owns):
                with step.context() if context is None else context:
                    result = step.run_step(copy.module, batch, step.batch_idx)
                returned = _loss_of(result)
                if returned is not None and returned.requires_grad and not copy.losses:
                    copy.backward(returned)
        except LossReached:
            pass
        except ReplayStopped as stop:
            stopped = stop.reason
        except (Exception, SystemExit) as error:  # a step may end the program where its loss is not finite
            stopped, has_raised = failure(error), True
    losses = tuple(copy.losses) or (() if returned is None else (returned.detach(),))
    return Outcome(losses, None if returned is None else returned.detach(), stopped, has_raised)


def failure(error: BaseException) -> str:
    """Return why a step could not be computed, for an exception that it raised."""
    if is_out_of_memory(error):
        return "there is not enough memory to compute the step again"
    return f"computing the step again raised {first_line(error)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception was raised for lack of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def deadline_of(step: ReplayStep, steps: float, seconds: float) -> float:
    """Return the time (of ``time.perf_counter``) at which a budget ends: the greater of ordinary steps and seconds."""
    return time.perf_counter() + max(steps * step.step_seconds, seconds)


def _loss_of(result: Any) -> Tensor | None:
    loss = result.get("loss") if isinstance(result, Mapping) else getattr(result, "loss", result)
    return loss if isinstance(loss, Tensor) else None


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad and tensor.is_leaf)


@contextmanager
def _untouched(step: ReplayStep) -> Iterator[None]:
    """Keep the run's random state, gradients and warnings as they are."""
    parameters = list(unwrapped(step.module).parameters())
    gradients = [one.grad for one in parameters]
    try:
        with ExitStack() as stack:
            stack.enter_context(random_state(step.random_state, step.devices))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_eager())
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient


def _eager() -> AbstractContextManager[Any]:
    """Return a context in which compiled functions run as they were written."""
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _require_memory(device: torch.device) -> None:
    """Raise `ReplayStopped` if a device has less memory free than the run's own step took at its peak."""
    if device.type != "cuda":
        return
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free = torch.cuda.mem_get_info(device)[0] + reserved - allocated
    if free < torch.cuda.max_memory_allocated(device) - allocated:
        raise ReplayStopped("there is not enough memory to compute the step again")
