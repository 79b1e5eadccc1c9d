"""The state of the random number generators that a training step draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Device = torch.device


class RandomState(NamedTuple):
    """The state of torch's generators and, where recorded, of Python's and NumPy's.

    Args:
        cpu: State of torch's generator of the processor.
        devices: State of torch's generator of each accelerator.
        python: State of ``random``, None if it was not recorded.
        numpy: State of ``numpy.random``, None if it was not recorded.
    """

    cpu: Tensor
    devices: tuple[tuple[Device, Tensor], ...] = ()
    python: Any = None
    numpy: Any = None

    @classmethod
    def capture(cls, devices: Sequence[Device] = (), *, everything: bool = True) -> RandomState:
        """Record the state as it is now (3 microseconds with ``everything=False`` on a processor).

        Args:
            devices: The accelerators that the module is on; the processor is always recorded, and accelerators whose
                generator cannot be read through torch are left out.
            everything: Whether Python's and NumPy's states are recorded too.
        """
        if not everything and not devices:  # at every calm step
            return cls(torch.default_generator.get_state())
        return cls(
            cpu=torch.get_rng_state(),
            devices=tuple(
                (one, _backend(one).get_rng_state(*_index(one)))
                for one in devices
                if hasattr(_backend(one), "get_rng_state") and one.type != "cpu"
            ),
            python=random.getstate() if everything else None,
            numpy=np.random.get_state() if everything else None,
        )

    def restore(self) -> None:
        """Set the generators to this state. What was not recorded is left as it is."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            _backend(device).set_rng_state(state, *_index(device))
        if self.python is not None:
            random.setstate(self.python)
        if self.numpy is not None:
            np.random.set_state(self.numpy)


@contextmanager
def random_state(state: RandomState | None, devices: Sequence[Device]) -> Iterator[None]:
    """Set the generators to a state, and put them back exactly as they were at the end."""
    before = RandomState.capture(devices)
    try:
        if state is not None:
            state.restore()
        yield
    finally:
        before.restore()


def _backend(device: Device) -> Any:
    return getattr(torch, device.type, None)


def _index(device: Device) -> tuple[Device, ...]:
    """Return the device as an argument, for those backends that have one generator a device."""
    return () if device.type == "mps" else (device,)
