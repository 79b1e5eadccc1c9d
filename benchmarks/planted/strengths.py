"""Faults at several strengths, from one with which a network still trains to one with which none does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from benchmarks.planted.faults import ROW, Fault, Plan, has_inputs, has_real_targets

Build = Callable[[Iterable[nn.Parameter], float], Optimizer]


def _momentum(parameters: Iterable[nn.Parameter], rate: float) -> Optimizer:
    return SGD(parameters, lr=rate, momentum=0.9)


_RATES: tuple[tuple[str, Build, tuple[float, ...]], ...] = (
    ("SGD", lambda parameters, rate: SGD(parameters, lr=rate), (0.01, 0.03, 0.1, 0.3, 1, 3, 10)),
    ("SGD with momentum", _momentum, (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)),
    ("AdamW", lambda parameters, rate: AdamW(parameters, lr=rate), (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1)),
    ("RMSprop", lambda parameters, rate: RMSprop(parameters, lr=rate), (1e-3, 1e-2, 0.1, 1)),
)


def _rates() -> Iterator[Fault]:
    for kind, build, rates in _RATES:
        for rate in rates:
            yield Fault(f"{kind} at a rate of {rate:g}", ("learning-rate",), _optimizer(build, rate))


def _optimizer(build: Build, rate: float) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        plan.lr, plan.optimizer = rate, lambda parameters: build(parameters, rate)

    return plant


def _inputs(factor: float, offset: float = 0.0) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        for name in plan.task.inputs:
            plan.data[name] = plan.data[name] * factor + offset

    return plant


def _targets(factor: float) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        plan.data[plan.task.targets[0]] *= factor

    return plant


def _weights(factor: float) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        with torch.no_grad():
            for parameter in plan.task.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(factor)

    return plant


def _sample(factor: float) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        for name in plan.task.inputs:
            plan.data[name][ROW] *= factor

    return plant


def _target(factor: float) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        plan.data[plan.task.targets[0]][ROW] *= factor

    return plant


def _summed(count: int) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        plan.sums = count

    return plant


def _not_cleared(plan: Plan) -> None:
    plan.clears = False


def _long_momentum(momentum: float) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        rate = max(plan.lr, 0.02)
        plan.optimizer = lambda parameters: SGD(parameters, lr=rate, momentum=momentum)

    return plant


def _averages(beta1: float, beta2: float) -> Callable[[Plan], None]:
    def plant(plan: Plan) -> None:
        rate = min(plan.lr, 5e-3)
        plan.optimizer = lambda parameters: Adam(parameters, lr=rate, betas=(beta1, beta2))

    return plant


STRENGTHS: tuple[Fault, ...] = (
    *_rates(),
    *(Fault(f"inputs times {one:g}", ("unscaled-data",), _inputs(one), has_inputs) for one in (10, 100, 1e3, 1e4)),
    *(Fault(f"inputs plus {one:g}", ("unscaled-data",), _inputs(1.0, one), has_inputs) for one in (10, 100, 1e3)),
    *(
        Fault(f"targets times {one:g}", ("unscaled-data",), _targets(one), has_real_targets)
        for one in (10, 100, 1e3, 1e4)
    ),
    *(Fault(f"weights times {one:g}", ("initialization",), _weights(one)) for one in (3, 10, 30)),
    *(Fault(f"a sample times {one:g}", ("outlier-batch",), _sample(one), has_inputs) for one in (1e2, 1e4, 1e6)),
    *(Fault(f"a target times {one:g}", ("outlier-batch",), _target(one), has_real_targets) for one in (1e2, 1e4, 1e6)),
    *(Fault(f"gradients of {one} micro-batches summed", ("accumulated-gradients",), _summed(one)) for one in (8, 32)),
    Fault("gradients that are not cleared, at the usual rate", ("accumulated-gradients",), _not_cleared),
    *(Fault(f"a momentum of {one:g}", ("optimizer-state",), _long_momentum(one)) for one in (0.99, 0.999, 1.0)),
    *(
        Fault(f"averages of Adam over {one}", ("optimizer-state",), _averages(*one))
        for one in ((0.9, 0.5), (0.99, 0.9), (0.9, 0.0))
    ),
)
