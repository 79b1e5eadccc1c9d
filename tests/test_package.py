"""The package as a whole: its names, its imports, and what it does not import."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_gradexplode

ROOT = Path(lightning_gradexplode.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric", "torchmetrics"}
OPTIONAL = {
    "wandb",
    "comet_ml",
    "mlflow",
    "tqdm",
    "tensorboard",
    "matplotlib",
    "plotly",
    "pandas",
    "sklearn",
    "rich",
    "jsonargparse",
    "yaml",
}


def named(path: Path) -> str:
    """Return a module's name below the package, for example ``measure.norms``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_by(path: Path) -> Iterator[tuple[str, bool]]:
    """Return the full name of each module that a file imports, and whether it does so as soon as it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_load = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            assert node.module is not None
            yield from ((f"{node.module}.{alias.name}", id(node) in at_load) for alias in node.names)


every_module = pytest.mark.parametrize("path", MODULES, ids=map(named, MODULES))


def test_public_names_are_those_that_can_be_imported() -> None:
    """``__all__`` is sorted, complete, and each of its names is there with a docstring."""
    names = lightning_gradexplode.__all__
    assert all(getattr(lightning_gradexplode, name).__doc__ for name in names)
    public = {
        name
        for name, value in vars(lightning_gradexplode).items()
        if not name.startswith("_") and not isinstance(value, type(ast)) and name not in ("TYPE_CHECKING", "Any")
    }
    assert names == sorted(set(names))
    assert set(names) == public - {"GradientExplosionTrainerCallback"}  # there only with the extra `transformers`


@pytest.mark.filterwarnings("ignore:lightning_gradexplode.* is deprecated:DeprecationWarning")
def test_every_package_has_the_names_that_it_lists() -> None:
    """The names in each package's ``__all__`` are there."""
    for info in pkgutil.walk_packages([str(ROOT)], "lightning_gradexplode."):
        if info.ispkg:
            package = importlib.import_module(info.name)
            assert all(hasattr(package, name) for name in getattr(package, "__all__", ()))


def test_the_package_is_typed() -> None:
    """Type checkers of users find the marker that lets them trust our hints."""
    assert (ROOT / "py.typed").exists()


@pytest.mark.parametrize(
    "path", [path for path in MODULES if named(path).startswith(("detect.", "records"))], ids=named
)
def test_detectors_know_numbers_only(path: Path) -> None:
    """Detectors and records import neither torch nor Lightning, so that they can be tested with nothing else."""
    assert not {name.partition(".")[0] for name, _ in imported_by(path)} & {"torch", *LIGHTNING}


@every_module
def test_optional_packages_are_imported_at_first_use(path: Path) -> None:
    """No module imports an optional package as soon as it is loaded."""
    assert not {name.partition(".")[0] for name, at_load in imported_by(path) if at_load} & OPTIONAL


def test_importing_the_package_loads_nothing_optional() -> None:
    """In a fresh process, what Lightning has not imported itself stays out of memory, and so does the engine."""
    program = f"""
import sys
import pytorch_lightning, lightning.pytorch
before = set(sys.modules)
import lightning_gradexplode
print(*sorted({OPTIONAL!r} & (set(sys.modules) - before)))
print(*sorted(name for name in sys.modules if name.startswith("lightning_gradexplode.engine")))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_plain_pytorch_loads_no_lightning() -> None:
    """In a fresh process, Lightning stays out of memory until the callback is first used."""
    program = f"""
import sys
from lightning_gradexplode import GradientWatch
print(*sorted({LIGHTNING!r} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
