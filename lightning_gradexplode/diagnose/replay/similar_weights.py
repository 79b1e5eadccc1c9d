"""Weights in place of those that an update has made non-finite, with which its step can still be computed again.

A fault of the data, of a mask or of the loss does not depend on the values of the weights, and occurs again with others
of their scale. One that does depend on them stays unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay.observation.finiteness import all_finite
from lightning_gradexplode.measure.parameters import plain_name
from lightning_gradexplode.records import ParameterFacts

_EQUAL = 1e-3
"""Relative difference of the root mean square from the largest value below which all elements are of one size."""


def similar_weights(module: nn.Module, facts: Sequence[ParameterFacts]) -> dict[str, Tensor] | None:
    """Return tensors for the parameters and buffers of a module that are not finite.

    A parameter is drawn from a normal distribution of the scale that it had at the start of the run, or has the one
    value that all of its elements had, such as the weight of a normalization. Running means are zero and variances one.

    Args:
        module: The module.
        facts: The parameters at the start of the run.

    Returns:
        The tensors by name; None if all are finite, or for the lack of a scale.
    """
    generator = torch.Generator().manual_seed(0)
    scales = {one.name: one for one in facts}
    found: dict[str, Tensor] = {}
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if not tensor.is_floating_point() or all_finite(tensor):
            continue
        plain = plain_name(name)
        if isinstance(tensor, nn.Parameter):
            scale = scales.get(plain)
            if scale is None or not math.isfinite(scale.std + scale.largest):
                return None
            drawn = torch.full(tensor.shape, scale.largest)
            if scale.largest - scale.std > _EQUAL * scale.largest:
                drawn = torch.randn(tensor.shape, generator=generator) * scale.std
        else:
            drawn = torch.full(tensor.shape, 1.0 if "var" in plain.rpartition(".")[2] else 0.0)
        found[plain] = drawn.to(tensor.device, tensor.dtype)
    return found or None
