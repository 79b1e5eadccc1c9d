"""The monitor's arguments, and the monitor before any run."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.fabric
import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch

import lightning_gradexplode
from lightning_gradexplode import (
    AutoPolicy,
    ClipPolicy,
    ConstantClip,
    FabricWatch,
    GradientExplosionMonitor,
    GradientWatch,
    Rollback,
    SkipStep,
    StopTraining,
    Warn,
    WeightPenalty,
    default_detectors,
)
from lightning_gradexplode.arguments import DEFAULTS, Arguments
from lightning_gradexplode.detect import GradientSpike, NonFiniteLoss


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"log_every_n_steps": -1}, ValueError, ["log_every_n_steps", "-1", "whole number of at least 0"]),
        ({"log_every_n_steps": 2.5}, TypeError, ["log_every_n_steps", "2.5", "whole number"]),
        ({"log_every_n_steps": True}, TypeError, ["log_every_n_steps", "True", "whole number"]),
        ({"histogram_every_n_steps": -5}, ValueError, ["histogram_every_n_steps", "-5", "whole number of at least 0"]),
        ({"histogram_every_n_steps": "10"}, TypeError, ["histogram_every_n_steps", "'10'", "whole number"]),
        ({"update_sample": 0}, ValueError, ["update_sample", "0", "at least 1"]),
        ({"update_sample": 1.5}, TypeError, ["update_sample", "1.5", "whole number"]),
        ({"per_parameter": "yes"}, TypeError, ["per_parameter", "'yes'", "True or False"]),
        ({"per_parameter": None}, TypeError, ["per_parameter", "None", "True or False"]),
        ({"include": "*.weight"}, TypeError, ["include", "'*.weight'", "sequence"]),
        ({"include": [1]}, TypeError, ["include", "[1]", "patterns"]),
        ({"include": None}, TypeError, ["include", "None", "sequence"]),
        ({"exclude": "*.bias"}, TypeError, ["exclude", "'*.bias'", "sequence"]),
        ({"detectors": NonFiniteLoss()}, TypeError, ["detectors", "NonFiniteLoss", "sequence"]),
        ({"detectors": [NonFiniteLoss]}, TypeError, ["detectors", "NonFiniteLoss", "Detector objects"]),
        ({"detectors": ["nonfinite-loss"]}, TypeError, ["detectors", "'nonfinite-loss'", "Detector objects"]),
        ({"clip": 0.0}, ValueError, ["clip", "0.0", "positive"]),
        ({"clip": "always"}, ValueError, ["clip", "'always'", '"auto"']),
        ({"clip": False}, TypeError, ["clip", "False", "number"]),
        ({"on_explosion": "explode"}, ValueError, ["on_explosion", "'explode'", '"warn"']),
        ({"on_explosion": []}, ValueError, ["on_explosion", "[]", '"warn"']),
        ({"on_explosion": 1}, TypeError, ["on_explosion", "1", '"warn"']),
        ({"report": 1}, TypeError, ["report", "1", "folder"]),
        ({"report": "s3://bucket/run"}, ValueError, ["report", "s3://bucket/run", "local folder"]),
        ({"report": Path("memory://run")}, ValueError, ["report", "local folder"]),
        ({"report": None}, TypeError, ["report", "None", "folder"]),
        ({"ignore": "stalled-loss"}, TypeError, ["ignore", "'stalled-loss'", "sequence"]),
        ({"ignore": ["stalled"]}, ValueError, ["ignore", "'stalled'", "stalled-loss"]),
        ({"alert_level": "error"}, ValueError, ["alert_level", "'error'", "'warning'"]),
        ({"diagnose": 1}, TypeError, ["diagnose", "1", "True or False"]),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    """A bad argument is refused where it is given; the message names it, what it got and what it takes."""
    with pytest.raises(error) as raised:
        GradientExplosionMonitor(**arguments)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_arguments_go_by_name_only() -> None:
    """No argument can be given by place, so that later ones may be put anywhere."""
    with pytest.raises(TypeError):
        GradientExplosionMonitor(10)  # type: ignore[call-arg]


def test_numbers_of_numpy_are_numbers() -> None:
    """Those that a search over hyperparameters yields are accepted, and become Python's own."""
    arguments = Arguments.checked(
        log_every_n_steps=np.int64(5),  # type: ignore[arg-type]
        update_sample=np.int32(100),  # type: ignore[arg-type]
        clip=np.float32(0.5),  # type: ignore[arg-type]
    )
    assert (arguments.log_every_n_steps, arguments.update_sample) == (5, 100)
    assert type(arguments.log_every_n_steps) is int
    assert isinstance(arguments.clip, ConstantClip)
    assert (arguments.clip.value, type(arguments.clip.value)) == (0.5, float)


@pytest.mark.parametrize("kind", [Arguments.checked, GradientWatch, FabricWatch])
def test_an_unknown_argument_is_refused_with_the_names_of_those_that_exist(kind: Any) -> None:
    """This also holds where a class takes the monitor's arguments as keywords."""
    network = torch.nn.Linear(1, 1)
    loop = (network, torch.optim.SGD(network.parameters(), lr=0.1))
    place = {GradientWatch: loop, FabricWatch: (lightning.fabric.Fabric(accelerator="cpu", devices=1), *loop)}
    with pytest.raises(TypeError, match=r"must be among log_every_n_steps, .*, clip, .*, update_sample, got 'clp'"):
        kind(*place.get(kind, ()), clp=1.0)


@pytest.mark.parametrize("kind", [GradientWatch, FabricWatch])
def test_signatures_show_the_same_arguments_and_defaults(kind: Any) -> None:
    """A class for loops without a Trainer has the monitor's arguments behind its own."""
    shared = list(inspect.signature(GradientExplosionMonitor).parameters.values())
    assert list(inspect.signature(kind).parameters.values())[-len(shared) :] == shared
    assert {one.name: one.default for one in shared} == DEFAULTS


def test_a_subclass_may_take_arguments_of_its_own() -> None:
    """It passes the others on, as `FabricWatch` does, and is built by a command line with both."""

    class Tagged(GradientWatch):
        def __init__(self, model: Any, optimizer: Any, *, tag: str = "", **arguments: Any) -> None:
            super().__init__(model, optimizer, **arguments)
            self.tag = tag

    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with Tagged(network, optimizer, tag="a", clip=2.0, report=False) as watch:
        assert watch.tag == "a"
        assert isinstance(watch.arguments.clip, ConstantClip)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse renames its methods from version to version
        left_out = {"model", "optimizer", "loggers", "scaler", "step"}
        if "watch.clip" not in parser.add_class_arguments(GradientWatch, "watch", skip=left_out):
            pytest.skip("this version of jsonargparse does not read the types of unpacked arguments")
        parsed = parser.parse_args(["--watch.clip", "auto", "--watch.on_explosion=skip"])
    assert (parsed.watch.clip, parsed.watch.on_explosion, parsed.watch.report) == ("auto", "skip", True)


def test_without_arguments_a_monitor_only_warns() -> None:
    """Without arguments all detectors watch, nothing is clipped, and an explosion only warns."""
    settings = Arguments.checked()
    assert [type(one) for one in settings.detectors] == [type(one) for one in default_detectors()]
    assert settings.clip is None
    assert [type(response) for response in settings.responses] == [Warn]
    assert settings.report is True


def test_no_detectors_at_all() -> None:
    """An empty sequence means no detector: everything is measured and logged, and nothing detected."""
    assert Arguments.checked(detectors=[]).detectors == ()


@pytest.mark.parametrize("callback", [pytorch_lightning.Callback, lightning.pytorch.Callback])
def test_it_is_a_callback_of_both_namespaces(callback: type) -> None:
    """Trainers of ``pytorch_lightning`` and of ``lightning`` both accept it."""
    assert isinstance(GradientExplosionMonitor(), callback)


def full() -> GradientExplosionMonitor:
    """Build a monitor with every argument."""
    return GradientExplosionMonitor(
        log_every_n_steps=3,
        histogram_every_n_steps=0,
        per_parameter=True,
        include=["*.weight"],
        exclude=["head.*"],
        detectors=[NonFiniteLoss(patience=7), GradientSpike()],
        clip="auto",
        on_explosion=["warn", StopTraining()],
        report="reports",
    )


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_an_unused_monitor_can_be_copied(
    copied: Callable[[GradientExplosionMonitor], GradientExplosionMonitor],
) -> None:
    """Copies have the same arguments, as launchers that start processes and users who reuse callbacks rely on."""
    monitor = copied(full())
    settings = monitor.arguments
    assert (settings.log_every_n_steps, settings.histogram_every_n_steps, settings.per_parameter) == (3, 0, True)
    assert (settings.include, settings.exclude, settings.report) == (("*.weight",), ("head.*",), Path("reports"))
    assert [type(one) for one in settings.detectors] == [NonFiniteLoss, GradientSpike]
    assert getattr(settings.detectors[0], "patience", None) == 7
    assert isinstance(settings.clip, AutoPolicy)
    assert [type(response) for response in settings.responses] == [Warn, StopTraining]
    assert (monitor.findings, monitor.exploded, monitor.last) == ([], False, None)


def built_from(text: str) -> Arguments:
    """Build the monitor from YAML, and return its checked arguments."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pytorch_lightning.Callback, "callback")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse renames its methods from version to version
        built = parser.instantiate_classes(parser.parse_string(f"callback:\n{text}"))
    assert isinstance(built.callback, GradientExplosionMonitor)
    return built.callback.arguments


def test_it_can_be_built_from_yaml() -> None:
    """Every argument can be written in a configuration file, detectors, policies and responses by their classes."""
    settings = built_from("""
        class_path: lightning_gradexplode.GradientExplosionMonitor
        init_args:
            log_every_n_steps: 3
            histogram_every_n_steps: 0
            per_parameter: true
            include: ["*.weight"]
            exclude: ["head.*"]
            detectors:
            - class_path: lightning_gradexplode.detect.NonFiniteLoss
              init_args:
                patience: 7
            - class_path: lightning_gradexplode.detect.GradientSpike
            clip:
                class_path: lightning_gradexplode.ConstantClip
                init_args:
                    value: 0.5
                    algorithm: value
            on_explosion:
            - warn
            - class_path: lightning_gradexplode.StopTraining
            report: reports
    """)
    assert (settings.log_every_n_steps, settings.histogram_every_n_steps, settings.per_parameter) == (3, 0, True)
    assert (settings.include, settings.exclude, settings.report) == (("*.weight",), ("head.*",), Path("reports"))
    assert [type(one) for one in settings.detectors] == [NonFiniteLoss, GradientSpike]
    assert getattr(settings.detectors[0], "patience", None) == 7
    assert isinstance(settings.clip, ConstantClip)
    assert (settings.clip.value, settings.clip.algorithm) == (0.5, "value")
    assert [type(response) for response in settings.responses] == [Warn, StopTraining]


@pytest.mark.parametrize(
    ("clip", "kind"), [("auto", AutoPolicy), ("1.0", ConstantClip), ("2", ConstantClip), ("null", type(None))]
)
def test_short_arguments_from_yaml(clip: str, kind: type) -> None:
    """Names, numbers and nothing are taken from a configuration file as what they stand for."""
    settings = built_from(f"""
        class_path: lightning_gradexplode.GradientExplosionMonitor
        init_args: {{clip: {clip}, on_explosion: stop, report: false}}
    """)
    assert isinstance(settings.clip, kind)
    assert [type(response) for response in settings.responses] == [StopTraining]
    assert settings.report is False


def test_the_help_of_a_command_line_lists_policies_for_users_only() -> None:
    """A class that the monitor wraps around each policy is none of them."""
    own = (kind for kind in ClipPolicy.__subclasses__() if kind.__module__.startswith("lightning_gradexplode."))
    names = {kind.__name__ for kind in own}
    assert {name for name in names if not name.startswith("_")} <= set(lightning_gradexplode.__all__)


@pytest.mark.parametrize("namespace", [pytorch_lightning, lightning.pytorch])
def test_it_can_be_built_by_the_command_line(namespace: Any) -> None:
    """LightningCLI of both namespaces builds it among a trainer's callbacks."""
    pytest.importorskip("docstring_parser", reason="LightningCLI needs jsonargparse[signatures]")
    pytest.importorskip("typeshed_client", reason="LightningCLI needs jsonargparse[signatures]")
    command_line = importlib.import_module(f"{namespace.__name__}.cli").LightningCLI
    callback = {
        "class_path": "lightning_gradexplode.GradientExplosionMonitor",
        "init_args": {
            "clip": "auto",
            "detectors": [{"class_path": "lightning_gradexplode.detect.NonFiniteLoss"}],
            "on_explosion": [
                "skip",
                {"class_path": "lightning_gradexplode.WeightPenalty", "init_args": {"l1": 0.1, "parameters": ["*"]}},
                {"class_path": "lightning_gradexplode.Rollback", "init_args": {"margin": 7, "folder": "states"}},
            ],
        },
    }
    trainer = {"callbacks": [callback], "logger": False, "accelerator": "cpu", "enable_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning about jsonargparse, and of that about itself
        built = command_line(namespace.LightningModule, run=False, args={"trainer": trainer}, save_config_callback=None)
    (monitor,) = (one for one in built.trainer.callbacks if isinstance(one, GradientExplosionMonitor))
    assert isinstance(monitor.arguments.clip, AutoPolicy)
    assert [type(one) for one in monitor.arguments.detectors] == [NonFiniteLoss]
    assert [type(one) for one in monitor.arguments.responses] == [SkipStep, WeightPenalty, Rollback]
