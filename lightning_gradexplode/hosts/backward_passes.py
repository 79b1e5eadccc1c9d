"""Calls at the beginning and at the end of backward passes, by hooks of tensors on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.distributed.shard_layout import version_of
from lightning_gradexplode.measure.parameters import held_by

Loss = Callable[[int, Tensor], Tensor | None]
Gradients = list[tuple[Tensor | None, int]]


class BackwardPasses:
    """Calls back at the beginning and at the end of each backward pass through tensors given to `expect`.

    Args:
        optimizers: Returns the optimizers whose gradients are compared.
        begins: Called when a pass has reached the first of the tensors.
        ended: Called at its end.
        guard: Calls a function with arguments; its failures do not reach the backward pass.

    Attributes:
        is_running: Whether a pass has begun and not ended.
    """

    def __init__(
        self,
        optimizers: Callable[[], Sequence[Optimizer]],
        begins: Callable[[], None],
        ended: Callable[[], None],
        guard: Callable[..., None],
    ) -> None:
        self.is_running = False
        self._optimizers = optimizers
        self._begins = begins
        self._ended = ended
        self._guard = guard
        self._losses: list[Tensor] = []
        self._before: Gradients = []
        self._weight: tuple[Tensor, int] | None = None

    def expect(self, tensors: Sequence[Tensor], loss: Loss) -> None:
        """Expect a backward pass through any of some tensors.

        Args:
            tensors: Results of a forward pass that require gradients.
            loss: Returns a loss of the pass from the index of a tensor that the pass has reached and the gradient
                there; None if it is unknown.
        """
        self.is_running = False  # an earlier pass may have been interrupted

        def hook_of(index: int) -> Callable[[Tensor | None], None]:
            def hook(gradient: Tensor | None) -> None:
                # None for an output that the pass does not go through, of a compiled model of which it uses another.
                if gradient is not None:
                    self._guard(self._reached, lambda: loss(index, gradient.detach()))

            return hook

        for index, tensor in enumerate(tensors):
            tensor.register_hook(hook_of(index))  # type: ignore[no-untyped-call]

    def take_losses(self) -> list[Tensor]:
        """Remove and return the losses that the pass has reached."""
        losses, self._losses = self._losses, []
        return losses

    def note_gradients(self) -> bool:
        """Record the gradients at the beginning of a pass, and return whether there is none."""
        self._before = self._gradients()
        return all(gradient is None for gradient, _ in self._before)

    def changed_gradients(self) -> bool:
        """Return whether a gradient was replaced or written to since they were noted."""
        before, now = self._before, self._gradients()
        pairs = zip(before, now, strict=True) if len(before) == len(now) else ()
        is_same = len(before) == len(now) and all(one is other and a == b for (one, a), (other, b) in pairs)
        if not is_same:
            self._before = []
        return not is_same

    def _reached(self, loss: Callable[[], Tensor | None]) -> None:
        if not self.is_running:
            self.is_running, self._losses = True, []
            self._begins()
            # Twice, since other callbacks of the backward pass, such as those of DDP, are registered later.
            _after_backward(lambda: _after_backward(lambda: self._guard(self._end)))
        value = loss()
        if value is not None:
            self._losses.append(value)

    def _end(self) -> None:
        self.is_running = False
        self._ended()

    def note_weight(self) -> None:
        """Note a weight that has a gradient, and how often it was written to."""
        weights = (one for one in self._weights() if one.grad is not None)
        self._weight = next(((one, version_of(one)) for one in weights), None)

    @property
    def weight_has_changed(self) -> bool:
        """Whether that weight was written to since."""
        return self._weight is not None and version_of(self._weight[0]) != self._weight[1]

    def _gradients(self) -> Gradients:
        """Return the gradients of all optimizers, and how often each was written to."""
        gradients = [weight.grad for weight in self._weights()]
        return [(one, 0 if one is None else version_of(one)) for one in gradients]

    def _weights(self) -> Iterator[Tensor]:
        return (weight for optimizer in self._optimizers() for weight in held_by(optimizer))


def _after_backward(call: Callable[[], None]) -> None:
    """Call a function at the end of the backward pass, after those that are registered already."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
