"""A training state: copied from a run in plain values, and written back into it in place."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_gradexplode.distributed.shard_layout import from_local_part, is_sharded, local_part
from lightning_gradexplode.measure.parameters import held_by
from lightning_gradexplode.respond.base import ResponseContext

State = dict[str, Any]


def can_take(run: ResponseContext) -> bool:
    """Return whether a state can be copied, which needs initialized lazy modules."""
    return not any(is_lazy(parameter) for parameter in run.module.parameters())


def take(run: ResponseContext) -> State:
    """Return a copy of a training state in host memory, in values that ``torch.load(weights_only=True)`` accepts.

    It consists of weights and buffers (of sharded ones what this process holds), averages of the weights, optimizers,
    schedulers, gradient scaler, random states of torch, numpy and Python, and the state of detectors and clip policies.
    """
    loop, module = run.loop, run.module
    with torch.no_grad():
        return {
            "parameters": {name: _copied(tensor) for name, tensor in module.named_parameters()},
            "buffers": {name: _copied(tensor) for name, tensor in module.named_buffers()},
            "averages": {name: _copied(list(tensors)) for name, tensors in loop.weight_averages.items()},
            "optimizers": [_optimizer_state(optimizer) for optimizer in loop.optimizers],
            "schedulers": [[type(one).__qualname__, copy.deepcopy(one.state_dict())] for one in loop.schedulers],
            "scaler": None if loop.scaler is None else copy.deepcopy(loop.scaler.state_dict()),
            "random": _random_state(),
            "rank": _rank(),
            "is_sharded": any(map(is_sharded, module.parameters())),
            "memory": None if run.memory is None else copy.deepcopy(run.memory.state_dict()),
        }


def misfit(run: ResponseContext, state: State) -> str | None:
    """Return why a state cannot be written back into the run as it is now; None if it can."""
    parameters = dict(run.module.named_parameters())
    saved = state["parameters"]
    if parameters.keys() != saved.keys():
        changed = sorted(parameters.keys() ^ saved.keys())
        return f"the model has other parameters now ({_few(changed)})"
    reshaped = [name for name, one in parameters.items() if is_lazy(one) or local_part(one).shape != saved[name].shape]
    if reshaped:
        return f"parameters have other shapes now ({_few(reshaped)})"
    if [_form(one) for one in run.loop.optimizers] != [one["form"] for one in state["optimizers"]]:
        return "the optimizers are others now, or have other parameters"
    return None


def restore(run: ResponseContext, state: State) -> list[str]:
    """Write a state that fits the run back in place; the state itself is not changed.

    Returns:
        Names of the parts that are not restored, since nothing in the state fits them.
    """
    loop, module = run.loop, run.module
    kept = []
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            local_part(tensor).copy_(state["parameters"][name])
        for name, tensor in module.named_buffers():
            if not _copy_if_same(tensor, state["buffers"].get(name)):
                kept.append(f"buffer {name}")
        for name, tensors in loop.weight_averages.items():
            if not _restore_average(list(tensors), state["averages"].get(name, [])):
                kept.append(f"weight average {name}")
        same_schedulers = [type(one).__qualname__ for one in loop.schedulers] == [one for one, _ in state["schedulers"]]
        for optimizer, saved in zip(loop.optimizers, state["optimizers"], strict=True):
            _restore_optimizer(optimizer, saved, same_schedulers)
    if same_schedulers:
        for scheduler, (_, saved) in zip(loop.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(copy.deepcopy(saved))
    else:
        kept.append("learning rate schedulers")
    if loop.scaler is not None and state["scaler"]:
        loop.scaler.load_state_dict(copy.deepcopy(state["scaler"]))
    if state["rank"] == _rank():
        _restore_random_state(state["random"])
    if run.memory is not None and state["memory"] is not None:
        run.memory.load_state_dict(copy.deepcopy(state["memory"]))
    return kept


def _copied(value: Any) -> Any:
    """Return a copy of a nested value, its tensors in host memory."""
    if isinstance(value, Tensor):
        return local_part(value.detach()).to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one) for one in value)
    return copy.deepcopy(value)


def _copy_if_same(tensor: Tensor, saved: Tensor | None) -> bool:
    local = local_part(tensor)
    if saved is None or local.shape != saved.shape:
        return False
    local.copy_(saved)
    return True


def _restore_average(tensors: list[Tensor], saved: list[Tensor]) -> bool:
    """Restore an average; a count of averaged states that began after the state was taken begins again at 0."""
    counts = tensors[len(saved) :]
    if not saved or any(one.ndim or one.is_floating_point() for one in counts):
        return False
    for count in counts:
        count.zero_()
    copied = [_copy_if_same(one, other) for one, other in zip(tensors, saved, strict=False)]
    return all(copied)


def _form(optimizer: Optimizer) -> list[Any]:
    """Return class and parameter shapes of an optimizer, which must be the same for a saved state to fit."""
    groups = [[list(local_part(one).shape) for one in group["params"]] for group in optimizer.param_groups]
    return [type(optimizer).__qualname__, groups]


def _optimizer_state(optimizer: Optimizer) -> State:
    states = [_copied(optimizer.state[p]) if p in optimizer.state else None for p in held_by(optimizer)]
    groups = [{name: _copied(v) for name, v in group.items() if name != "params"} for group in optimizer.param_groups]
    return {"form": _form(optimizer), "states": states, "groups": groups}


def _restore_optimizer(optimizer: Optimizer, saved: State, with_rates: bool) -> None:
    for parameter, state in zip(held_by(optimizer), saved["states"], strict=True):
        if state is None:
            optimizer.state.pop(parameter, None)
            continue
        current = optimizer.state[parameter]
        for name in [name for name in current if name not in state]:
            del current[name]
        for name, value in state.items():
            current[name] = _restored(value, current.get(name), parameter)
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        for name, value in values.items():
            if with_rates or not name.endswith("lr"):
                group[name] = _restored(value, group.get(name), None)


def _restored(saved: Any, current: Any, parameter: Any) -> Any:
    """Return a saved value: the current tensor, overwritten in place, if its shape and type match, else a copy."""
    if isinstance(saved, Tensor):
        if isinstance(current, Tensor) and local_part(current).shape == saved.shape and current.dtype == saved.dtype:
            local_part(current).copy_(saved)
            return current
        return saved.clone() if parameter is None or not saved.ndim else _placed_like(saved, parameter)
    if isinstance(saved, dict):
        return {key: _restored(value, None, parameter) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        return type(saved)(_restored(value, None, parameter) for value in saved)
    return copy.deepcopy(saved)


def _placed_like(saved: Tensor, parameter: Any) -> Tensor:
    """Return a copy of a saved tensor on a parameter's device, sharded like it if it has the parameter's shape."""
    local = local_part(parameter)
    copied = saved.to(local.device, copy=True)
    if local is parameter or local.shape != saved.shape:
        return copied
    return from_local_part(copied, like=parameter)


def _random_state() -> State:
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "devices": _states_of_devices(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *map(float, rest)],
        "python": random.getstate(),
    }


def _states_of_devices() -> list[Tensor]:
    """Return the states of all GPUs; of none in a run that uses none, where asking would take memory of each GPU."""
    uses_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if uses_gpu else []


def _restore_random_state(state: State) -> None:
    torch.set_rng_state(state["torch"])
    if state["devices"] and len(state["devices"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["devices"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    version, words, gauss = state["python"]  # lists instead of tuples after a checkpoint
    random.setstate((version, tuple(words), gauss))


def _rank() -> int:
    return (
        torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
    )


def _few(names: Iterable[str]) -> str:
    first, *rest = names
    return first if not rest else f"{first} and {len(rest)} more"
