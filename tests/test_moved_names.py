"""Names of version 0.1.0 that have moved."""

from __future__ import annotations

import importlib
import sys

import pytest

from lightning_gradexplode.loggers import LoggerAdapter


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("publish", ("Publisher", "Board", "register_publisher", "alert_rules")),
        ("explain", ("Diagnosis", "Recorder", "advice_for")),
    ],
)
def test_old_import_paths_work_with_a_deprecation_warning(package: str, names: tuple[str, ...]) -> None:
    """The warning names the new place, and every old name is there."""
    sys.modules.pop(f"lightning_gradexplode.{package}", None)
    with pytest.warns(DeprecationWarning, match=r"lightning_gradexplode\.(loggers|records)"):
        module = importlib.import_module(f"lightning_gradexplode.{package}")
    assert all(hasattr(module, name) for name in names)


@pytest.mark.filterwarnings("ignore:lightning_gradexplode.publish is deprecated:DeprecationWarning")
def test_a_publisher_of_version_0_1_serves_its_logger() -> None:
    """The old base class is the new one."""
    publish = importlib.import_module("lightning_gradexplode.publish")
    assert publish.Publisher is LoggerAdapter
