"""A copy of a module on which a training step can be computed a second time without changing the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.diagnose.replay.attribute_state import AttributeState
from lightning_gradexplode.diagnose.replay.copies.copyable import (
    is_lightning,
    require_separate,
    require_values,
    unwrapped,
)
from lightning_gradexplode.diagnose.replay.copies.gradient_norm import GradientNorm
from lightning_gradexplode.diagnose.replay.copies.left_out import leaves_out
from lightning_gradexplode.diagnose.replay.copies.stand_ins import OptimizerStandIn, ReadOnly, ReplayStopped, Silent
from lightning_gradexplode.diagnose.replay.copies.structural_copy import StructuralCopy
from lightning_gradexplode.measure.parameters import held_by, plain_name

TENSOR_BYTES = 256 << 20
"""Budget for clones of buffers and other tensors."""


class ModuleCopy:
    """A copy of a module: its parameters are views of the run's weights, everything else is its own.

    Parameters keep ``requires_grad`` and have no gradient. Buffers and other tensors are cloned within a budget. In a
    LightningModule the trainer is read-only, logging does nothing, and ``manual_backward`` and ``optimizers`` are
    replaced: the backward pass runs, no weight changes.

    Args:
        module: The module of the run; wrappers for distributed training and compilation are removed.
        weights: Tensors to use in place of the parameters and buffers of that name.
        attributes: Numbers and generators that the copy has in place of those that the module holds.
        optimizers: The optimizers of the run; empty for those of the module's trainer.
        stepped: How often those at some places have stepped since the step began. When one that has stepped once does
            so in the copy, its parameters become those that the run has now.
        loss_scale: What the loss is multiplied by before each backward pass.
        clone_parameters: Whether the parameters are cloned, for a step that writes to them.
        tensor_bytes: Budget for clones.
        deadline: Time (of ``time.perf_counter``) at which copying is given up.

    Attributes:
        module: The copy.
        notes: Its differences from the module, in one sentence each.
        owned: Its tensors that may be written to.
        losses: The loss of each backward pass that ran so far.
        has_run_weights: For each of them, whether it was computed with the weights that the run had then.
        gradients: The gradients that the optimizers would have received.
        stop_at_loss: Whether the step ends where the first backward pass would begin.

    Raises:
        ReplayStopped: No copy can be made.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        weights: Mapping[str, Tensor] | None = None,
        attributes: AttributeState | None = None,
        optimizers: Sequence[Optimizer] = (),
        stepped: Mapping[int, int] = MappingProxyType({}),
        loss_scale: float = 1.0,
        clone_parameters: bool = False,
        tensor_bytes: int = TENSOR_BYTES,
        deadline: float = float("inf"),
    ) -> None:
        self.losses: list[Tensor] = []
        self.has_run_weights: list[bool] = []
        self.gradients = GradientNorm()
        self.stop_at_loss = False
        self._has_other_weights = False
        self._ahead = {place for place, count in stepped.items() if count == 1}
        self._stale = set() if weights else {place for place, count in stepped.items() if count}
        self._has_stepped = False
        self._clones_parameters = clone_parameters
        self._scale = loss_scale
        self._copier = copier = StructuralCopy(tensor_bytes, deadline)
        self.notes, self.owned = copier.notes, copier.tensors.owned
        original = unwrapped(module)
        require_values(original)
        self._copy_tensors(original, {plain_name(name): one for name, one in (weights or {}).items()}, clone_parameters)
        self._optimizers = self._copy_optimizers(original, optimizers)
        trainer = self._copy_trainer(original)
        for one in original.modules():
            if isinstance(getattr(one, "_orig_mod", None), nn.Module):
                copier.replace(one, copier(one._orig_mod))
        self.module: nn.Module = copier(original)
        require_separate(original, self.module, self.notes)
        if attributes is not None:
            attributes.restore(copier.memo)
        if trainer is not None:
            trainer._served.update(lightning_module=self.module, model=self.module)
        self._copy_tensor_hooks(original)
        for one in self.module.modules():
            if is_lightning(one):
                vars(one).update(
                    self._replaced_methods(), _fabric=None, _trainer=trainer, _param_requires_grad_state={}
                )
            if getattr(one, "_compiled_call_impl", None) is not None:
                one._compiled_call_impl = None

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a loss."""
        self.losses.append(loss.detach())
        self.has_run_weights.append(self._is_exact)
        if self.stop_at_loss:
            raise LossReached
        scaled = loss * self._scale if self._scale != 1.0 else loss
        if is_lightning(self.module):
            self.module.backward(scaled, *args, **kwargs)  # type: ignore[operator]
        else:
            scaled.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def measure_gradients(self) -> None:
        """Add the gradients that the copy holds at the end of the step."""
        if not self._has_stepped and self._is_exact:
            self.gradients.add(self.module.named_parameters(), self._scale)

    def close(self) -> None:
        """Release the copy's memory, which reference cycles would keep until the next garbage collection."""
        for parameter in self.module.parameters():
            parameter.grad = None
        originals = {id(one) for one in self._copier.modules}
        for one in list(self.module.modules()):
            if id(one) in originals:
                vars(one).clear()
        self.losses.clear()
        self._copier.memo.clear()

    def _copy_tensors(self, original: nn.Module, weights: Mapping[str, Tensor], clone_parameters: bool) -> None:
        copier = self._copier
        # While Lightning has an optimizer toggled, the parameters of the others require no gradient.
        toggled: dict[nn.Parameter, bool] = getattr(original, "_param_requires_grad_state", {})
        for name, parameter in original.named_parameters():
            data = weights.get(plain_name(name), parameter).detach().to(parameter.device, parameter.dtype)
            if clone_parameters:
                data = copier.tensors.tensor(data, name)
            copier.tensors.share_storage(data)
            view = torch.Tensor._make_subclass(type(parameter), data, toggled.get(parameter, parameter.requires_grad))
            copier.replace(parameter, view)
            for attribute, value in vars(parameter).items():
                setattr(view, attribute, value)
        for name, buffer in original.named_buffers():
            copier.replace(buffer, copier(weights.get(plain_name(name), buffer), name))

    def _copy_tensor_hooks(self, original: nn.Module) -> None:
        for parameter in original.parameters():
            for hook in (parameter._backward_hooks or {}).values():
                if not leaves_out(hook):
                    self._copier(parameter).register_hook(self._copier(hook))

    def _copy_optimizers(self, original: nn.Module, optimizers: Sequence[Optimizer]) -> list[OptimizerStandIn]:
        trainer = getattr(original, "_trainer", None)
        listed = list(optimizers or getattr(trainer, "optimizers", None) or ())
        held = [one for part in original.modules() for one in vars(part).values() if isinstance(one, Optimizer)]
        stand_ins = [self._stand_in(one, place) for place, one in enumerate(listed)]
        for one in held:
            if id(one) not in self._copier.memo:
                self._stand_in(one, None)
        return stand_ins

    def _stand_in(self, optimizer: Any, place: int | None) -> OptimizerStandIn:
        memo = self._copier.memo
        groups = [
            {**group, "params": [memo.get(id(one), one) for one in group["params"]]} for group in optimizer.param_groups
        ]
        originals = held_by(optimizer)
        stand_in = OptimizerStandIn(groups, lambda: self._step(place, originals), self._toggled)
        self._copier.replace(optimizer, stand_in)
        return stand_in

    def _step(self, place: int | None, originals: Sequence[nn.Parameter]) -> None:
        """Measure the gradients that an optimizer receives, and load the weights that the run has after its step."""
        self._has_stepped = True
        copies = [self._copier.memo.get(id(one)) for one in originals]
        if self._is_exact:
            own = {id(one) for one in copies}
            named = self.module.named_parameters()
            self.gradients.add(((name, one) for name, one in named if id(one) in own), self._scale)
        if place not in self._ahead:
            self._has_other_weights = True
            return
        self._ahead.discard(place)
        self._stale.discard(place)
        for one, original in zip(copies, originals, strict=True):
            if one is None:
                continue
            if self._clones_parameters:
                one.data.copy_(original.detach())
            else:
                one.data = original.detach()

    @property
    def _is_exact(self) -> bool:
        """Whether the weights are those that the run had at this point of its step."""
        return not self._has_other_weights and not self._stale

    @contextmanager
    def _toggled(self, optimizer: OptimizerStandIn) -> Iterator[None]:
        """Require gradients of one optimizer's parameters only, as Lightning does."""
        module: Any = self.module
        if not is_lightning(module):
            yield
            return
        module.toggle_optimizer(optimizer)
        yield
        module.untoggle_optimizer(optimizer)

    def _copy_trainer(self, original: nn.Module) -> ReadOnly | None:
        trainer = getattr(original, "_trainer", None) or getattr(original, "_fabric", None)
        if trainer is None:
            return None
        stand_in = ReadOnly(trainer, "trainer", {"optimizers": self._optimizers}, {"datamodule": self._copier})
        self._copier.replace(trainer, stand_in)
        return stand_in

    def _replaced_methods(self) -> dict[str, Any]:
        """Return the methods that replace a LightningModule's own."""

        def nothing(*args: Any, **kwargs: Any) -> None:
            """Do nothing."""

        def optimizers(use_pl_optimizer: bool = True) -> Any:
            return self._optimizers[0] if len(self._optimizers) == 1 else self._optimizers

        def all_gather(data: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                raise ReplayStopped("the step communicates with other processes (all_gather)")
            return data

        names = ("log", "log_dict", "print", "clip_gradients", "configure_gradient_clipping")
        return dict.fromkeys(names, nothing) | {
            "lr_schedulers": Silent,
            "manual_backward": self.backward,
            "optimizers": optimizers,
            "all_gather": all_gather,
        }


class LossReached(BaseException):
    """Raised where the first backward pass would begin, if only the loss is wanted."""
