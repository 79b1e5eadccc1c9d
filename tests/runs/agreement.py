"""Holds what the monitor logged against what the probe saw."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_gradexplode import Histogram, StepRecord
from tests.runs.probe import Truth, Watched, counts, largest, nonfinite, norm


def close(logged: float, true: float, tolerance: float = 1e-6) -> bool:
    """Compare two numbers; NaN equals NaN."""
    if math.isnan(true):
        return math.isnan(logged)
    return math.isclose(logged, true, rel_tol=tolerance, abs_tol=1e-30)


def assert_agrees(run: Watched, steps: int, *, update_tolerance: float = 1e-6, histograms: bool = True) -> None:
    """Hold every logged number against the probe's, one log for each optimizer step.

    Args:
        run: The run.
        steps: Number of optimizer steps that the run has to have made, so that an empty run does not agree.
        update_tolerance: Relative error allowed in the weight changes: half precision cannot hold them exactly.
        histograms: Whether each batch makes one step, so that the record of each step is at hand.
    """
    truths = [truth for truth in run.probe.truths if any(g is not None for g in truth.gradients.values())]
    assert len(truths) == steps
    assert len(run.logged) == steps
    for logged, truth in zip(run.logged, truths, strict=True):
        _assert_gradients(logged, truth)
        if truth.stepped:
            _assert_weights(logged, truth, update_tolerance)
    if histograms:
        assert len(run.probe.records) == steps
        for record, truth in zip(run.probe.records, truths, strict=True):
            _assert_histograms(record, truth)


def assert_batches_agree(run: Watched, batches: int, steps: int) -> None:
    """Hold the logs of batches in which several steps were taken against the probe's.

    The headline is of all optimizers that stepped in the batch, each with its last step; each has its own beside it.

    Args:
        run: The run.
        batches: Number of batches that the run has to have made.
        steps: Number of optimizer steps.
    """
    assert len(run.probe.truths) == steps
    assert len(run.logged) == batches
    for batch, logged in enumerate(run.logged):
        last = {id(truth.optimizer): truth for truth in run.probe.truths if truth.batch == batch}
        gradients = [gradient for truth in last.values() for gradient in truth.gradients.values()]
        scale = next(iter(last.values())).scale
        assert close(logged["gradexplode/grad_norm"], norm(*gradients, scale=scale))
        assert close(logged["gradexplode/grad_max"], largest(*gradients, scale=scale))
        if all(truth.stepped for truth in last.values()):
            before = norm(*(tensor for truth in last.values() for tensor in truth.before.values()))
            after = [tensor for truth in last.values() for tensor in truth.after.values()]
            change = [
                truth.after[name].double() - old.double()
                for truth in last.values()
                for name, old in truth.before.items()
            ]
            assert close(logged["gradexplode/weight_norm"], norm(*after))
            assert close(logged["gradexplode/update_ratio"], norm(*change) / before)
        for optimizer, truth in enumerate(last.values()):
            if len(last) > 1:
                own = norm(*truth.gradients.values(), scale=truth.scale)
                assert close(logged[f"gradexplode/optimizer_{optimizer}/grad_norm"], own)
            for name, gradient in truth.gradients.items():
                assert close(logged[f"gradexplode/grad_norm/{name}"], norm(gradient, scale=truth.scale)), name


def plain(name: str) -> str:
    """Return the name that a user wrote, without torch.compile's additions."""
    return name.replace("_orig_mod.", "")


def _assert_gradients(logged: dict[str, float], truth: Truth) -> None:
    gradients = list(truth.gradients.values())
    assert close(logged["gradexplode/grad_norm"], norm(*gradients, scale=truth.scale))
    assert close(logged["gradexplode/grad_max"], largest(*gradients, scale=truth.scale))
    assert logged["gradexplode/nonfinite_count"] == sum(map(nonfinite, gradients))
    shown = {key.removeprefix("gradexplode/grad_norm/") for key in logged if key.startswith("gradexplode/grad_norm/")}
    assert shown == {plain(name) for name in truth.gradients}
    for name, gradient in truth.gradients.items():
        assert close(logged[f"gradexplode/grad_norm/{plain(name)}"], norm(gradient, scale=truth.scale)), name
        assert close(logged[f"gradexplode/grad_max/{plain(name)}"], largest(gradient, scale=truth.scale)), name
        assert logged[f"gradexplode/nonfinite_count/{plain(name)}"] == nonfinite(gradient), name


def _assert_weights(logged: dict[str, float], truth: Truth, tolerance: float) -> None:
    changes: dict[str, Tensor] = {
        name: after.to(wide(after)) - truth.before[name].to(wide(after)) for name, after in truth.after.items()
    }
    before = norm(*truth.before.values())
    assert close(logged["gradexplode/weight_norm"], norm(*truth.after.values()))
    assert close(logged["gradexplode/update_ratio"], norm(*changes.values()) / before, tolerance)
    for name, after in truth.after.items():
        assert close(logged[f"gradexplode/weight_norm/{plain(name)}"], norm(after)), name
        change, old = norm(changes[name]), norm(truth.before[name])
        ratio = 0.0 if change == 0 else change / old if old else math.inf
        assert close(logged[f"gradexplode/update_ratio/{plain(name)}"], ratio, tolerance), name


def _assert_histograms(record: StepRecord, truth: Truth) -> None:
    gradients = {plain(name): gradient for name, gradient in truth.gradients.items() if gradient is not None}
    assert set(record.histograms["gradient"]) == set(gradients)
    for name, gradient in gradients.items():
        _assert_same(record.histograms["gradient"][name], gradient, truth.scale)
    for name, after in truth.after.items():
        _assert_same(record.histograms["weight"][plain(name)], after)
        _assert_same(record.histograms["update"][plain(name)], after - truth.before[name])


def _assert_same(histogram: Histogram, tensor: Tensor, scale: float = 1.0) -> None:
    assert histogram.counts.tolist() == counts(tensor, scale)
    assert histogram.nonfinite == nonfinite(tensor)


def wide(tensor: Tensor) -> torch.dtype:
    """Return the widest type for a tensor's elements."""
    return torch.complex128 if tensor.is_complex() else torch.float64
