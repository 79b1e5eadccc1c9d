"""Trains runs for real, and keeps what a detector would have seen of them."""

from __future__ import annotations

import ast
import hashlib
import inspect
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from torch.utils.data import DataLoader

from benchmarks.scenarios.family import Family
from benchmarks.scenarios.probe import Outcome, Probe, losses_before
from lightning_gradexplode import Detector, Finding, GradientExplosionMonitor, StepRecord, measure

CACHE = Path(__file__).parent / ".cache"
_SHARED = ("module.py", "data.py", "probe.py", "recording.py")


@dataclass(frozen=True, slots=True, eq=False)
class RecordedStep:
    """One optimizer step: what was known before it, and, if it took place, all that was measured of it."""

    before: StepRecord
    after: StepRecord | None


@dataclass(frozen=True, slots=True, eq=False)
class RecordedRun:
    """A run, with weights, details and error gradients of modules measured at every step.

    Args:
        family: Name of the family.
        seed: Its seed.
        outcome: What became of it.
        steps: All optimizer steps, oldest first.
        measured_by: A fingerprint of the package's measuring code at that time.
    """

    family: str
    seed: int
    outcome: Outcome
    steps: list[RecordedStep] = field(repr=False)
    measured_by: str = ""


class _KeepingRecords(Detector):
    """A detector that finds nothing, and keeps all records it is shown."""

    sign = "recording"

    def __init__(self, field_waited_for: str, records: dict[tuple[int, int], StepRecord]) -> None:
        self.reads = (field_waited_for,)  # type: ignore[misc]
        self.records = records

    def __deepcopy__(self, memo: dict[int, Any]) -> _KeepingRecords:
        return self  # the monitor gives each optimizer a copy; here all write into the same records

    def check(self, record: StepRecord) -> Finding | None:
        self.records[record.step, record.optimizer] = replace(record, histograms={})
        return None


class Recording:
    """What a monitor keeps of a run in which it measures everything at every step.

    Attributes:
        arguments: Arguments of the monitor.
    """

    def __init__(self) -> None:
        self._before: dict[tuple[int, int], StepRecord] = {}
        self._after: dict[tuple[int, int], StepRecord] = {}
        self.arguments: Mapping[str, Any] = {
            "log_every_n_steps": 1,
            "histogram_every_n_steps": 1,
            "detectors": [_KeepingRecords("grad_norm", self._before), _KeepingRecords("update_ratio", self._after)],
            "report": False,
        }

    @property
    def steps(self) -> list[RecordedStep]:
        """All optimizer steps so far, oldest first."""
        return [RecordedStep(early, self._after.get(key)) for key, early in self._before.items()]


def record(family: Family, seed: int) -> RecordedRun:
    """Train one run of a family to ten steps past its loss, or to its end."""
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    setup = family.build(seed)
    probe = Probe(losses_before(setup.module, setup.batches[:8]))
    recording = Recording()
    with _quiet():
        fit(setup.module, setup.batches, [GradientExplosionMonitor(**recording.arguments), probe], setup.trainer)
    if max((step.before.step for step in recording.steps), default=-1) != probe.last_step:
        raise RuntimeError(f"the monitor did not see all of {family.name}, seed {seed}")
    return RecordedRun(family.name, seed, probe.outcome(), recording.steps, measuring_code())


def fit(module: Any, batches: Any, callbacks: list[Any], options: dict[str, Any]) -> Trainer:
    """Train a module once through its batches on the processor, with nothing logged or saved."""
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from telling, for each of hundreds of runs, which accelerators there are."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def recorded(family: Family, seed: int, fresh: bool = False) -> RecordedRun:
    """Return a run from the cache; it is trained if it is not there, or if the source it comes from has changed.

    Args:
        family: Its family.
        seed: Its seed.
        fresh: Train it anew in any case, as after a change of what the package measures; see `measuring_code`.
    """
    shared = [Path(__file__).parent / name for name in _SHARED]
    source = [*shared, Path(inspect.getfile(family.build))]
    return cached(f"{family.name}-{seed}", source, fresh, lambda: record(family, seed))


def cached(name: str, source: Sequence[Path], fresh: bool, train: Callable[[], RecordedRun]) -> RecordedRun:
    """Return a run from the cache; it is trained if it is not there, or if the source it comes from has changed.

    Args:
        name: Name of the run.
        source: Files with the code that it comes from.
        fresh: Train it anew in any case.
        train: Trains and records it.
    """
    path = CACHE / f"{name}-{_fingerprint(source)}.pickle"
    if path.exists() and not fresh:
        with path.open("rb") as file:
            return _unpacked(pickle.load(file))
    run = train()
    CACHE.mkdir(exist_ok=True)
    for old in CACHE.glob(f"{name}-*.pickle"):
        old.unlink()
    path.write_bytes(pickle.dumps(_packed(run)))
    return run


def measuring_code() -> str:
    """Return a fingerprint of the package's code that turns tensors into numbers."""
    package = Path(inspect.getfile(measure)).parent.parent
    files = [path for folder in ("measure", "records") for path in sorted((package / folder).glob("*.py"))]
    return _fingerprint(files)


def _fingerprint(files: Sequence[Path]) -> str:
    """Return a short hash of the code in files, whatever their comments and docstrings."""
    code = hashlib.sha256()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""
        code.update(ast.dump(tree).encode())
    return code.hexdigest()[:12]


def _packed(run: RecordedRun) -> dict[str, Any]:
    """Return a run in plain values, by field names, so that a record may gain fields and old files still be read."""
    pairs = [(_fields(step.before), step.after and _fields(step.after)) for step in run.steps]
    return {**{n: getattr(run, n) for n in RecordedRun.__slots__}, "steps": pairs}


def _unpacked(plain: dict[str, Any]) -> RecordedRun:
    steps = [RecordedStep(StepRecord(**early), late and StepRecord(**late)) for early, late in plain["steps"]]
    return RecordedRun(**{**plain, "steps": steps})


def _fields(record: StepRecord) -> dict[str, Any]:
    default = StepRecord(step=-1)
    values = {name: getattr(record, name) for name in StepRecord.__slots__}
    values = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {n: v for n, v in values.items() if n == "per_parameter" or v != getattr(default, n)}
