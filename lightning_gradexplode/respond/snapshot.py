"""A whole training state, taken out of a run and put back into it in place."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradexplode.respond.base import ResponseContext


def take(run: ResponseContext) -> dict[str, Any]:
    """Copy what makes up a training state, to host memory.

    That is: weights and buffers (of sharded ones what this process holds), optimizers, schedulers, gradient scaler,
    random states of torch, numpy and Python, and the monitor's memory of the run.
    """
    trainer, module = run.trainer, run.module
    with torch.no_grad():
        return {
            "tensors": [_copied(tensor) for tensor in (*module.parameters(), *module.buffers())],
            "optimizers": [_optimizer_state(optimizer) for optimizer in trainer.optimizers],
            "schedulers": [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            "scaler": None if trainer.scaler is None else copy.deepcopy(trainer.scaler.state_dict()),
            "random": _random_state(),
            "memory": None if run.memory is None else copy.deepcopy(run.memory.state_dict()),
        }


def put_back(run: ResponseContext, state: dict[str, Any]) -> None:
    """Put a state back that `take` gave; tensors are written to in place, and the state may be used again."""
    trainer, module = run.trainer, run.module
    with torch.no_grad():
        for tensor, saved in zip((*module.parameters(), *module.buffers()), state["tensors"], strict=True):
            _local(tensor).copy_(saved)
        for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
            _restore_optimizer(optimizer, saved)
    for config, saved in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        config.scheduler.load_state_dict(copy.deepcopy(saved))
    if trainer.scaler is not None and state["scaler"]:
        trainer.scaler.load_state_dict(copy.deepcopy(state["scaler"]))
    _restore_random_state(state["random"])
    if run.memory is not None and state["memory"] is not None:
        run.memory.load_state_dict(copy.deepcopy(state["memory"]))


def _local(tensor: Any) -> Tensor:
    """Give the part of a sharded tensor that lies on this process, sharing its memory."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def _copied(value: Any) -> Any:
    """Copy a nested value, its tensors to host memory."""
    if isinstance(value, Tensor):
        return _local(value.detach()).to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(one) for one in value)
    return copy.deepcopy(value)


def _optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [_copied(optimizer.state[p]) if p in optimizer.state else None for p in parameters]
    groups = [{name: _copied(v) for name, v in group.items() if name != "params"} for group in optimizer.param_groups]
    return {"states": states, "groups": groups}


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, state in zip(parameters, saved["states"], strict=False):
        if state is None:
            optimizer.state.pop(parameter, None)
            continue
        current = optimizer.state[parameter]
        for name in [name for name in current if name not in state]:
            del current[name]
        for name, value in state.items():
            current[name] = _restored(value, current.get(name), parameter)
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=False):
        for name, value in values.items():
            group[name] = _restored(value, group.get(name), None)


def _restored(saved: Any, current: Any, parameter: Any) -> Any:
    """Give a value to go on with: the current tensor, written to, where there is one of the same form."""
    if isinstance(saved, Tensor):
        if isinstance(current, Tensor) and _local(current).shape == saved.shape and current.dtype == saved.dtype:
            _local(current).copy_(saved)
            return current
        return saved.clone() if parameter is None or not saved.ndim else _placed_like(saved, parameter)
    if isinstance(saved, dict):
        return {key: _restored(value, None, parameter) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        return type(saved)(_restored(value, None, parameter) for value in saved)
    return copy.deepcopy(saved)


def _placed_like(saved: Tensor, parameter: Any) -> Tensor:
    """Give a copy of a saved tensor where a parameter lies, and sharded like it if it has the parameter's shape."""
    local = _local(parameter)
    copied = saved.to(local.device, copy=True)
    if local is parameter or local.shape != saved.shape:
        return copied
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        copied, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
    )


def _random_state() -> dict[str, Any]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "devices": devices,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["devices"]:
        torch.cuda.set_rng_state_all(state["devices"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
