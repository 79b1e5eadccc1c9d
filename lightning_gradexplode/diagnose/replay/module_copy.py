"""A copy of a module on which a training step can be computed a second time without changing the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradexplode.diagnose.replay.finiteness import all_finite, has_nan, nonfinite_mask, rows_of, storage_key
from lightning_gradexplode.diagnose.replay.observer import Source
from lightning_gradexplode.diagnose.replay.stand_ins import OptimizerStandIn, ReadOnly, ReplayStopped, Silent
from lightning_gradexplode.diagnose.replay.structural_copy import StructuralCopy, leaves_out

TENSOR_BYTES = 256 << 20
"""Budget for clones of buffers and other tensors."""

_SHARDED = ("DTensor", "FlatParameter", "ShardedTensor")
_WRAPPERS = ("DistributedDataParallel", "DataParallel", "_LightningModuleWrapperBase", "_FabricModule")


class ModuleCopy:
    """A copy of a module: its parameters are views of the run's weights, everything else is its own.

    Parameters keep ``requires_grad`` and have no gradient. Buffers and other tensors are cloned within a budget. In a
    LightningModule the trainer is a read-only stand-in, logging does nothing, and ``manual_backward`` and
    ``optimizers`` are served: the backward pass runs, no weight changes.

    Args:
        module: The module of the run; wrappers for distributed training and compilation are removed.
        weights: Tensors to use in place of the parameters and buffers of that name.
        optimizers: The optimizers of the run, for the copy's ``optimizers()``.
        loss_scale: What the loss is multiplied by before each backward pass.
        deadline: Time (of ``time.perf_counter``) at which copying is given up.
        tensor_bytes: Budget for clones.

    Attributes:
        module: The copy.
        notes: What it differs in from the module, in one sentence each.
        owned: Its tensors that may be written to.
        losses: The loss of each backward pass that ran so far.
        updates: How often an optimizer would have stepped.
        stop_at_loss: Whether the step ends where the first backward pass would begin.

    Raises:
        ReplayStopped: No copy can be made.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        weights: Mapping[str, Tensor] | None = None,
        optimizers: Sequence[Optimizer] = (),
        loss_scale: float = 1.0,
        deadline: float = float("inf"),
        tensor_bytes: int = TENSOR_BYTES,
    ) -> None:
        self.losses: list[Tensor] = []
        self.updates = 0
        self.gradients = GradientNorm()
        self.stop_at_loss = False
        self._scale = loss_scale
        original = unwrapped(module)
        refuse_sharded(original)
        copier = StructuralCopy(tensor_bytes, deadline)
        self._take_parameters(original, copier, weights or {})
        optimizers = list(optimizers) or _optimizers_of(original)
        stand_ins = [self._stand_in(one, copier) for one in optimizers]
        trainer = self._replace_trainer(original, copier, stand_ins)
        for one in original.modules():
            if isinstance(getattr(one, "_orig_mod", None), nn.Module):
                copier.replace(one, copier(one._orig_mod))
        self.module: nn.Module = copier(original)
        if not isinstance(self.module, nn.Module):
            raise ReplayStopped(copier.notes[-1].rstrip(".") if copier.notes else "the module cannot be copied")
        if trainer is not None:
            trainer._served.update(lightning_module=self.module, model=self.module)
        self._copy_tensor_hooks(original, copier)
        for one in self.module.modules():
            self._serve(one, trainer, stand_ins)
            if getattr(one, "_compiled_call_impl", None) is not None:
                one._compiled_call_impl = None
        self.notes = copier.notes
        self.owned = copier.tensors.owned

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a loss."""
        self.losses.append(loss.detach())
        if self.stop_at_loss:
            raise LossReached
        run = getattr(self.module, "backward", None) if is_lightning(self.module) else None
        scaled = loss * self._scale if self._scale != 1.0 else loss
        if run is None:
            scaled.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        else:
            run(scaled, *args, **kwargs)

    def measure_gradients(self) -> GradientNorm:
        """Return what was measured of the gradients, those that the copy holds now included."""
        self.gradients.add(self.module.named_parameters(), self._scale)
        return self.gradients

    def sources(self) -> dict[int, Source]:
        """Return the copy's tensors that are not finite before the step, by the address of their storage."""
        named: list[tuple[str, str, Tensor]] = []
        named += [("parameter", name, one) for name, one in self.module.named_parameters()]
        named += [("buffer", name, one) for name, one in self.module.named_buffers()]
        known = {storage_key(one) for _, _, one in named}
        named += [
            ("attribute", _attribute(self.module, one), one) for one in self.owned if storage_key(one) not in known
        ]
        return nonfinite_sources(named)

    def _take_parameters(self, original: nn.Module, copier: StructuralCopy, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in original.named_parameters():
            data = weights.get(name, parameter)
            copier.tensors.share_storage(data)
            view = torch.Tensor._make_subclass(type(parameter), data.detach(), parameter.requires_grad)
            copier.replace(parameter, view)
            for attribute, value in vars(parameter).items():
                setattr(view, attribute, value)
        for name, buffer in original.named_buffers():
            copier.replace(buffer, copier(weights.get(name, buffer), name))

    def _copy_tensor_hooks(self, original: nn.Module, copier: StructuralCopy) -> None:
        for parameter in original.parameters():
            for hook in (parameter._backward_hooks or {}).values():
                if not leaves_out(hook):
                    copier.memo[id(parameter)].register_hook(copier(hook))

    def _stand_in(self, optimizer: Any, copier: StructuralCopy) -> OptimizerStandIn:
        groups = [
            {**group, "params": [copier.memo.get(id(one), one) for one in group["params"]]}
            for group in optimizer.param_groups
        ]

        def step() -> None:
            own = {id(one) for group in groups for one in group["params"]}
            self.gradients.add(
                ((name, one) for name, one in self.module.named_parameters() if id(one) in own), self._scale
            )
            self.updates += 1

        stand_in = OptimizerStandIn(groups, step)
        copier.replace(optimizer, stand_in)
        return stand_in

    @staticmethod
    def _replace_trainer(original: nn.Module, copier: StructuralCopy, stand_ins: list[Any]) -> ReadOnly | None:
        trainer = getattr(original, "_trainer", None) or getattr(original, "_fabric", None)
        if trainer is None:
            return None
        stand_in = ReadOnly(trainer, "trainer", {"optimizers": stand_ins})
        copier.replace(trainer, stand_in)
        return stand_in

    def _serve(self, module: nn.Module, trainer: ReadOnly | None, stand_ins: list[Any]) -> None:
        if not is_lightning(module):
            return

        def nothing(*args: Any, **kwargs: Any) -> None:
            """Do nothing."""

        def optimizers(use_pl_optimizer: bool = True) -> Any:
            return stand_ins[0] if len(stand_ins) == 1 else stand_ins

        def all_gather(data: Any, *args: Any, **kwargs: Any) -> Any:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                raise ReplayStopped("the step communicates with other processes (all_gather)")
            return data

        served: dict[str, Callable[..., Any]] = {
            "log": nothing,
            "log_dict": nothing,
            "print": nothing,
            "clip_gradients": nothing,
            "configure_gradient_clipping": nothing,
            "lr_schedulers": lambda: Silent(),
            "manual_backward": self.backward,
            "optimizers": optimizers,
            "all_gather": all_gather,
        }
        vars(module).update(served, _fabric=None, _trainer=trainer)


class LossReached(BaseException):
    """Raised where the first backward pass would begin, if only the loss is wanted."""


class GradientNorm:
    """Sums up the gradients that optimizers would have been handed.

    Attributes:
        nonfinite: The gradients that are not finite, by the name of the parameter.
    """

    def __init__(self) -> None:
        self.nonfinite: dict[str, Tensor] = {}
        self._norms: dict[str, float] = {}

    def add(self, named: Iterable[tuple[str, nn.Parameter]], scale: float) -> None:
        """Measure the gradients that parameters hold, divided by the scale of the loss."""
        for name, parameter in named:
            gradient = parameter.grad
            if gradient is None:
                continue
            values = gradient.coalesce()._values() if gradient.is_sparse else gradient
            if not all_finite(values):
                self.nonfinite[name] = gradient
            wide = torch.float64 if values.device.type == "cpu" and values.is_floating_point() else None
            self._norms[name] = float(torch.linalg.vector_norm(values, dtype=wide).abs()) / scale

    @property
    def norm(self) -> float | None:
        """L2 norm of all, None if there was none."""
        return math.hypot(*self._norms.values()) if self._norms else None


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module without wrappers for distributed training and compilation."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__ in _WRAPPERS:
            inner = getattr(module, "module", None) or getattr(module, "_forward_module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def is_lightning(module: nn.Module) -> bool:
    """Return whether a module is a LightningModule of an installed Lightning."""
    return any(one.__name__ == "LightningModule" and "lightning" in one.__module__ for one in type(module).__mro__)


def refuse_sharded(module: nn.Module) -> None:
    """Raise `ReplayStopped` if the module's parameters are sharded, or not there yet."""
    for name, one in module.named_parameters():
        kinds = {kind.__name__ for kind in type(one).__mro__}
        if kinds & set(_SHARDED) or type(one.data).__name__ in _SHARDED:
            raise ReplayStopped("the parameters are sharded over several processes")
        if "UninitializedTensorMixin" in kinds or one.is_meta:
            raise ReplayStopped(f"the parameter {name} has no values")


def nonfinite_sources(named: Iterable[tuple[str, str, Tensor]], size: int | None = None) -> dict[int, Source]:
    """Return those tensors that are not finite, by the address of their storage.

    Args:
        named: Kind, name and tensor.
        size: Number of rows of the batch, for its fields.
    """
    return {
        storage_key(one) or 0: Source(kind, name, has_nan(one), rows_of(nonfinite_mask(one), size))
        for kind, name, one in named
        if not all_finite(one)
    }


def _attribute(module: nn.Module, tensor: Tensor) -> str:
    """Return the name of the attribute that holds a tensor, ``"a tensor"`` where it is held deeper."""
    key = storage_key(tensor)
    for name, one in module.named_modules():
        for attribute, value in vars(one).items():
            if isinstance(value, Tensor) and storage_key(value) == key:
                return f"{name}.{attribute}" if name else attribute
    return "a tensor"


def _optimizers_of(module: nn.Module) -> list[Any]:
    trainer = getattr(module, "_trainer", None)
    return list(getattr(trainer, "optimizers", None) or [])
