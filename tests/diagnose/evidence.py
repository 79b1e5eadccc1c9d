"""Evidence built from plain numbers, as a run of each kind leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_gradexplode.records import (
    BatchFacts,
    Diagnosis,
    Evidence,
    FieldFacts,
    Finding,
    History,
    ModuleFacts,
    Operand,
    Operation,
    OptimizerFacts,
    ParameterFacts,
    Replay,
    RunFacts,
    Severity,
)

NAN = float("nan")


def finding(
    sign: str, step: int, severity: Severity = Severity.CRITICAL, where: str | None = None, value: float = 1.0
) -> Finding:
    """Return a finding."""
    return Finding(step, sign, severity, where, value, 1.0, f"{sign} was seen")


def history(values: Mapping[str, Sequence[float]], first_step: int = 0) -> History:
    """Return the history of some quantities, of as many steps as the longest of them has values."""
    count = max(len(one) for one in values.values())
    padded = {name: np.array([*one, *[NAN] * (count - len(one))], dtype=float) for name, one in values.items()}
    return History(np.arange(first_step, first_step + count), padded)


def calm(steps: int = 30, loss: float = 0.7, rate: float = 0.01) -> dict[str, list[float]]:
    """Return the quantities of a run in which nothing happens."""
    wave = [1 + 0.05 * (-1) ** step for step in range(steps)]
    return {
        "loss": [loss * one for one in wave],
        "grad_norm": [0.5 * one for one in wave],
        "update_ratio": [0.002] * steps,
        "weight_norm": [8.0 + 0.001 * step for step in range(steps)],
        "learning_rate": [rate] * steps,
        "backward_passes": [1.0] * steps,
        "micro_batches": [1.0] * steps,
    }


def growing(steps: int = 12, factor: float = 3.0, rate: float = 0.5) -> dict[str, list[float]]:
    """Return the quantities of a run that grows from its first step on."""
    return {
        "loss": [2.0 * factor**step for step in range(steps)],
        "grad_norm": [5.0 * factor**step for step in range(steps)],
        "update_ratio": [0.4 * 1.2**step for step in range(steps)],
        "weight_norm": [8.0 * 1.5**step for step in range(steps)],
        "learning_rate": [rate] * steps,
        "backward_passes": [1.0] * steps,
        "micro_batches": [1.0] * steps,
    }


def failed(at: int, sign: str = "nonfinite-loss", **parts: Any) -> Evidence:
    """Return the evidence of a calm run in which something stops being finite at a step."""
    quantities = calm(at + 1)
    if sign == "nonfinite-loss":
        quantities["loss"][-1] = NAN
    if sign != "nonfinite-weight":
        quantities["grad_norm"][-1] = NAN
    quantities["weight_norm"][-1] = NAN
    defaults: dict[str, Any] = {
        "findings": (finding(sign, at, value=NAN),),
        "history": (history(quantities),),
        "run": run(),
        "weights_are_finite": sign == "nonfinite-loss",
    }
    return Evidence(at, at, **{**defaults, **parts})


def diverged(**parts: Any) -> Evidence:
    """Return the evidence of a run that grows from the first step on."""
    quantities = growing()
    last = len(quantities["loss"]) - 1
    defaults: dict[str, Any] = {
        "findings": (finding("large-update", 1, Severity.WARNING), finding("diverging-loss", last - 4)),
        "history": (history(quantities),),
        "run": run(),
    }
    return Evidence(**{"step": 1, "now": last, **defaults, **parts})


def run(**facts: Any) -> RunFacts:
    """Return what is known of a small network that is trained by gradient descent."""
    defaults: dict[str, Any] = {
        "modules": (
            ModuleFacts("body", "Linear", "linear"),
            ModuleFacts("act", "ReLU", "activation"),
            ModuleFacts("head", "Linear", "linear"),
        ),
        "parameters": (parameter("body.weight", (32, 8)), parameter("head.weight", (1, 32))),
        "optimizers": (OptimizerFacts("SGD", ({"lr": 0.5, "momentum": 0.0},)),),
        "batch_size": 16,
    }
    return RunFacts(**{**defaults, **facts})


def parameter(name: str, shape: tuple[int, ...], gain: float = 0.58, **facts: Any) -> ParameterFacts:
    """Return a weight that multiplies independent inputs by a gain."""
    defaults: dict[str, Any] = {
        "module": name.rpartition(".")[0],
        "module_kind": "Linear",
        "std": gain / shape[-1] ** 0.5,
        "largest": 3 * gain / shape[-1] ** 0.5,
        "fan_in": shape[-1],
        "optimizer": 0,
    }
    return ParameterFacts(name, shape, **{**defaults, **facts})


def field(name: str = "[0]", **facts: Any) -> FieldFacts:
    """Return a field of standard normal numbers; ``"target of mse_loss"`` is one that the graph of a loss shows."""
    defaults: dict[str, Any] = {
        "shape": (16, 8),
        "dtype": "float32",
        "least": -3.0,
        "greatest": 3.0,
        "mean": 0.0,
        "std": 1.0,
        "usual_least": -3.5,
        "usual_greatest": 3.5,
        "usual_std": 1.0,
        **_reader(name),
    }
    return FieldFacts(name, **{**defaults, **facts})


def renamed(one: FieldFacts, name: str) -> FieldFacts:
    """Return a field with another name, which says whether the graph of a loss shows it."""
    return replace(one, name=name, **_reader(name))


def _reader(name: str) -> dict[str, Any]:
    """Return what reads a tensor of a graph, by the name that it has there."""
    read_as, _, read_by = name.replace(" in ", " of ").partition(" of ")
    return {"read_as": read_as if read_by else None, "read_by": read_by.removeprefix("layer ")}


def labels(name: str = "[1]", **facts: Any) -> FieldFacts:
    """Return a field of class labels."""
    defaults: dict[str, Any] = {
        "shape": (16,),
        "dtype": "int64",
        "least": 0.0,
        "greatest": 1.0,
        "usual_least": 0.0,
        "usual_greatest": 1.0,
        "usual_std": 0.5,
        "mean": 0.5,
        "std": 0.5,
        "is_integral": True,
        "most_common": 0.0,
        "most_common_share": 0.5,
        **_reader(name),
    }
    return FieldFacts(name, **{**defaults, **facts})


def batch(*fields: FieldFacts, **facts: Any) -> BatchFacts:
    """Return a batch of sixteen rows."""
    defaults: dict[str, Any] = {"fields": fields, "batch_idx": 25, "size": 16, "usual_size": 16}
    return BatchFacts(**{**defaults, **facts})


def operation(
    name: str, result: Any = "nan", phase: Any = "forward", inputs: Sequence[Operand] = (), **facts: Any
) -> Operation:
    """Return an operation with a non-finite result, in a line of the user's own."""
    defaults: dict[str, Any] = {"module": "head", "file": "losses.py", "line": 12, "code": f"y = torch.{name}(x)"}
    return Operation(name, phase, result, inputs=tuple(inputs), **{**defaults, **facts})


def operand(at_fault: float | None = None, least: float = -1.0, greatest: float = 1.0, **facts: Any) -> Operand:
    """Return what an operation took."""
    return Operand(**{"shape": (16, 4), "dtype": "float32", **facts}, least=least, greatest=greatest, at_fault=at_fault)


def reproduced(first: Operation, **facts: Any) -> Replay:
    """Return a replay that failed again in an operation."""
    return Replay("reproduced", first=first, **facts)


def kinds(diagnosis: Diagnosis) -> list[str]:
    """Return the kinds of the causes."""
    return [cause.kind for cause in diagnosis.causes]
