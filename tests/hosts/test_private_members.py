"""The private members of Lightning and torch that the adapter uses: a release that renames one fails here first."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

NAMESPACES = ["pytorch_lightning", "lightning.pytorch"]


def part(namespace: str, module: str, name: str) -> Any:
    """Return a class of one of Lightning's two namespaces."""
    return getattr(importlib.import_module(f"{namespace}.{module}"), name)


def trainer(namespace: str) -> Any:
    """Build a trainer."""
    return part(namespace, "trainer", "Trainer")(accelerator="cpu", logger=False, enable_checkpointing=False)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_step_of_metrics_is_counted(namespace: str) -> None:
    """`LightningLoop.step` reads the counter that Lightning logs its own metrics at."""
    assert trainer(namespace).fit_loop.epoch_loop._batches_that_stepped == 0


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_metrics_can_be_published_without_computing_those_of_the_module(namespace: str) -> None:
    """`LightningLoop.publish_metrics` writes to the dictionary behind ``callback_metrics``."""
    assert isinstance(trainer(namespace)._logger_connector._callback_metrics, dict)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_logged_values_are_kept_by_step(namespace: str) -> None:
    """`LightningLoop.logged_scalars` reads the results of the step and the latest value of each."""
    assert hasattr(trainer(namespace).fit_loop.epoch_loop, "_results")
    module = importlib.import_module(f"{namespace}.trainer.connectors.logger_connector.result")
    result = module._ResultMetric(module._Metadata("training_step", "loss"), is_tensor=True)
    assert hasattr(result, "_forward_cache")
    assert result.meta.name == "loss"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_what_keeps_a_stopped_run_going_is_known(namespace: str) -> None:
    """`LightningLoop.minimum_training` reads the fit loop."""
    loop = trainer(namespace).fit_loop
    assert hasattr(type(loop), "_can_stop_early")
    assert hasattr(loop, "min_epochs")
    assert hasattr(type(loop), "min_steps") or hasattr(loop, "min_steps")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_checkpoint_callbacks_can_be_blocked(namespace: str) -> None:
    """`LightningLoop.block_checkpoints` sets the step that was saved last."""
    assert hasattr(part(namespace, "callbacks", "ModelCheckpoint")(), "_last_global_step_saved")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_processes_that_a_trainer_starts_are_recognized(namespace: str) -> None:
    """`runs_in_a_started_process` recognizes the launcher by its name."""
    launchers = importlib.import_module(f"{namespace}.strategies.launchers.multiprocessing")
    assert launchers._MultiProcessingLauncher.__name__ == "_MultiProcessingLauncher"


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_weight_averages_are_found(namespace: str) -> None:
    """`LightningLoop.weight_averages` reads the average of ``StochasticWeightAveraging``."""
    assert hasattr(part(namespace, "callbacks", "StochasticWeightAveraging")(0.1), "_average_model")


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_clipping_by_norm_is_the_plugins_own(namespace: str) -> None:
    """`LightningLoop.use_measured_norm` replaces it only where it is Lightning's."""
    plugin = part(namespace, "plugins.precision", "Precision")
    assert plugin.clip_grad_by_norm.__qualname__ == "Precision.clip_grad_by_norm"


def test_the_scale_of_a_gradient_scaler_is_a_tensor() -> None:
    """`LightningLoop.loss_scale` reads it without waiting for a device, once it is there."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    assert scaler._scale is not None
    assert float(scaler._scale) == 8.0


def test_fused_optimizers_say_that_they_unscale_themselves() -> None:
    """`unscales_itself` reads the attribute that torch's scaler reads."""
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    assert torch.optim.AdamW(parameters, fused=True)._step_supports_amp_scaling
