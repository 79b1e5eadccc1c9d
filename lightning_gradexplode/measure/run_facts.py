"""What is recorded of a run before its first step: modules, initial weights, optimizers and settings, in plain values.

Nothing of the run is changed: no hook is set, no random number is drawn and no user code is called.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_gradexplode.distributed.shard_layout import is_sharded
from lightning_gradexplode.measure.elements import flat_elements
from lightning_gradexplode.measure.maxima import measure_maxima
from lightning_gradexplode.measure.module_facts import (
    class_of,
    collect_modules,
    gate_matrices,
    is_known,
    named_modules,
    recurrent_weights,
)
from lightning_gradexplode.measure.norms import measure_norms
from lightning_gradexplode.measure.optimizer_facts import collect_optimizer
from lightning_gradexplode.measure.parameters import plain_name, replica_prefixes
from lightning_gradexplode.measure.spectral_radius import spectral_radius
from lightning_gradexplode.records import ModuleFacts, ParameterFacts, RunFacts

MAX_MATRIX_ROWS = 2048
"""Number of rows up to which eigenvalues of recurrent matrices are computed."""
MAX_MATRICES = 32
"""Number of recurrent matrices of which they are computed."""

_PACKAGES = ("torch", "lightning", "pytorch-lightning", "lightning-gradexplode", "numpy", "transformers")
_NO_MATRIX = re.compile(r"emb|pos|token|query|queries|prototype|codebook|centroid|memory", re.IGNORECASE)
"""Parts of the names of parameters with two dimensions and more by which nothing is multiplied."""
_PARAMETRIZED = re.compile(r"(^|\.)(parametrizations\.|weight_(g|v|orig)$)")
"""Names of parameters from which a weight of another scale is computed."""
_WITHIN_OWNER = re.compile(r"(^|\.)(parametrizations\..*|[^.]*)$")
"""The part of a parameter's name that follows its module's name."""


def collect_run_facts(
    module: nn.Module,
    optimizers: Sequence[Any],
    settings: Mapping[str, Any] | None = None,
) -> RunFacts:
    """Return what is known of a run before its first step.

    Args:
        module: The network. Parameters may be sharded (then the elements of this process count), on the meta device
            or not initialized (then their numbers are NaN), or of any type.
        optimizers: The optimizers, in the order of the training loop.
        settings: Fields of `RunFacts` that depend on the training loop, such as ``precision``.

    Returns:
        The facts. Weights are read from their device in few transfers, whatever their number.

    Raises:
        TypeError: A setting is no field of `RunFacts`.
    """
    settings = dict(settings or {})
    return RunFacts(
        modules=tuple(collect_modules(module).values()),
        parameters=tuple(_parameters(module, optimizers)),
        optimizers=tuple(collect_optimizer(one) for one in optimizers),
        versions={**_versions(), **settings.pop("versions", {})},
        **settings,
    )


def in_order(facts: RunFacts, executed: Sequence[str]) -> RunFacts:
    """Return the facts of a run with modules and parameters in the order of execution.

    Args:
        facts: The facts, in any order.
        executed: Names of modules in the order of their first execution. Modules that are not among them, such as
            containers, follow in the order that they have.
    """
    ranks = {name: rank for rank, name in enumerate(dict.fromkeys(executed))}

    def module_rank(one: ModuleFacts) -> int:
        return ranks.get(one.name, len(ranks))

    def parameter_rank(one: ParameterFacts) -> int:
        return ranks.get(one.module, len(ranks))

    return replace(
        facts,
        modules=tuple(sorted(facts.modules, key=module_rank)),
        parameters=tuple(sorted(facts.parameters, key=parameter_rank)),
        order_is_executed=True,
    )


def unchanged_weights(module: nn.Module, facts: RunFacts, names: Collection[str]) -> tuple[str, ...]:
    """Return the names of the weights whose size is exactly that of the start of the run.

    Args:
        module: The network.
        facts: The facts about the run before its first step.
        names: The names of the weights that are looked at.
    """
    start = {one.name: (one.std, one.largest) for one in facts.parameters if one.name in names}
    if not start:
        return ()
    prefixes = replica_prefixes(module)
    named = ((plain_name(name, prefixes), one) for name, one in module.named_parameters())
    now = {name: one for name, one in named if name in start}
    scales = zip(now, *_scales([*now.values()]), strict=True)
    return tuple(name for name, rms, largest in scales if start[name] == (rms, largest))


def frozen_parameters(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that take no gradient at present."""
    prefixes = replica_prefixes(module)
    return tuple(plain_name(name, prefixes) for name, one in module.named_parameters() if not one.requires_grad)


def _parameters(module: nn.Module, optimizers: Sequence[Any]) -> list[ParameterFacts]:
    """Return the facts of a network's parameters, and of those that only an optimizer holds."""
    prefixes, owners = replica_prefixes(module), named_modules(module)
    named: list[tuple[str, Tensor]] = [(plain_name(name, prefixes), one) for name, one in module.named_parameters()]
    known = {id(one) for _, one in named}
    updated_by: dict[int, int] = {}
    for index, optimizer in enumerate(optimizers):
        for name, one in _held(optimizer):
            updated_by.setdefault(id(one), index)
            if id(one) not in known:
                known.add(id(one))
                named.append((name, one))
    radii = _spectral_radii(owners)
    found = []
    for (name, one), rms, largest in zip(named, *_scales([one for _, one in named]), strict=True):
        owner_name = _WITHIN_OWNER.sub("", name)
        owner = owners.get(owner_name)
        found.append(
            ParameterFacts(
                name=name,
                shape=() if nn.parameter.is_lazy(one) else tuple(one.shape),
                dtype=str(one.dtype).removeprefix("torch."),
                module=owner_name if owner is not None else "",
                module_kind="" if owner is None else class_of(owner).__name__,
                std=rms,
                largest=largest,
                fan_in=_fan_in(name, one, owner),
                spectral_radius=radii.get(id(one)),
                optimizer=updated_by.get(id(one)),
            )
        )
    return found


def _held(optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """Iterate over an optimizer's parameters, with the names that they have if the network does not hold them."""
    for i, group in enumerate(getattr(optimizer, "param_groups", None) or ()):
        for j, one in enumerate(group["params"]):
            yield f"group{i}.parameter{j}", one


def _scales(tensors: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Return the root mean square and the largest absolute value of each tensor, NaN where there are none."""
    scales = np.full((2, len(tensors)), np.nan)
    counts = {place: count for place, one in enumerate(tensors) if (count := _held_count(one))}
    attempts = [list(counts), *([place] for place in counts)]
    for places in attempts:
        with suppress(RuntimeError, NotImplementedError, TypeError):  # some types have no such kernels
            chosen = [tensors[place] for place in places]
            norms = measure_norms(chosen).each / np.sqrt([counts[place] for place in places])
            scales[:, places] = norms, measure_maxima(chosen)
            if len(places) == len(counts):
                break
    return scales[0].tolist(), scales[1].tolist()


def _held_count(tensor: Tensor) -> int:
    """Return the number of elements that this process holds, 0 for what is no tensor of real or complex numbers."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    with suppress(RuntimeError, NotImplementedError, AttributeError, TypeError):
        return flat_elements(tensor).numel() // (2 if tensor.is_complex() else 1)
    return 0


def _fan_in(name: str, parameter: Tensor, owner: nn.Module | None) -> int | None:
    """Return the number of inputs that each output of a weight is a sum over, None if it is no such weight."""
    if nn.parameter.is_lazy(parameter) or parameter.dim() < 2 or _PARAMETRIZED.search(name):
        return None
    shape = tuple(parameter.shape)
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        inputs = shape[0] // owner.groups * math.prod(shape[2:])
        return max(1, inputs // math.prod(owner.stride))
    if owner is not None and is_known(owner):
        return None if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) else math.prod(shape[1:])
    if _NO_MATRIX.search(name) or shape[0] == 1 or shape[-1] == 1:
        return None
    return min(shape[-2:])  # only the forward function of the user shows which of the two it is


def _spectral_radii(modules: Mapping[str, nn.Module]) -> dict[int, float | None]:
    """Return the spectral radius of the recurrent weights, None if it is not finite, by the id of the parameter."""
    found: dict[int, float | None] = {}
    count = 0
    for module in modules.values():
        for weight in recurrent_weights(module).values():
            matrices = [] if is_sharded(weight) or weight.is_meta else gate_matrices(weight.detach())
            count += len(matrices)
            if id(weight) in found or not matrices or len(matrices[0]) > MAX_MATRIX_ROWS or count > MAX_MATRICES:
                continue
            radius = max(spectral_radius(matrix) for matrix in matrices)
            found[id(weight)] = radius if math.isfinite(radius) else None
    return found


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
