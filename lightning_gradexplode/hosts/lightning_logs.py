"""The logs of Lightning's Trainer: loggers, folders, name of the run, and what the module has logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lightning_gradexplode import checks
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.hosts.lightning_namespaces import Trainer
from lightning_gradexplode.hosts.logger_attributes import LoggerAttributes
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.report import base_folder, public_name


class LightningLogs(TrainingLoop):
    """The part of the adapter that reads folder and name of a run from the first logger, and what the module logs.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._attributes = LoggerAttributes()

    @property
    def log_every_n_steps(self) -> int:
        """``trainer.log_every_n_steps``."""
        return int(self.trainer.log_every_n_steps)

    @property
    def loggers(self) -> Sequence[Any]:
        """``trainer.loggers``."""
        loggers: Sequence[Any] = self.trainer.loggers
        return loggers

    @property
    def _first_logger(self) -> Any:
        return next(iter(self.trainer.loggers), None)

    def log_folder(self) -> Path:
        """Return the folder that the first logger writes to, else the trainer's ``default_root_dir``.

        Raises:
            ValueError: It is a URL.
        """
        return checks.folder("the folder of the logs", self._log_dir())

    def _log_dir(self) -> str:
        """Return ``trainer.log_dir``, but without other processes waiting for one on which a logger raises."""
        first = self._first_logger
        has_own = any(kind.__name__ in ("TensorBoardLogger", "CSVLogger") for kind in type(first).__mro__)
        own = self._attributes.folder(first, "log_dir" if has_own else "save_dir")
        folder = own or str(self.trainer.default_root_dir)
        if self.process_group.size > 1:
            folder = self.trainer.strategy.broadcast(folder)
        return folder.removeprefix("file://").removeprefix("file:")  # Lightning normalizes the one to the other

    def report_folder(self, report: Path | bool | Literal["always"]) -> Path | None:
        """Return the folder for reports: in the folder of the run, if its logger creates one per run."""
        folder = self._log_dir()  # on every process
        if "://" in folder and report in (True, "always"):
            logger.warning("gradexplode: reports are not written to %s; pass report= a local folder", folder)
            return None
        has_own = self._attributes.folder(self._first_logger, "log_dir") is not None  # in W&B runs share a folder
        own = Path(folder) if has_own else None
        return base_folder(report, own, Path(folder), self.run_id, datetime.now(timezone.utc))

    @property
    def run_name(self) -> str:
        """Name and version of the first logger."""
        parts = [self._attributes.text(self._first_logger, name) for name in ("name", "version")]
        return " ".join(public_name(part) for part in parts if part) or "run"

    @property
    def run_id(self) -> str | None:
        """The version of the first logger, if that is an identifier and not a mere number."""
        version = self._attributes.read(self._first_logger, "version")
        return version if isinstance(version, str) and not version.startswith("version_") else None

    def logged_scalars(self) -> Mapping[str, Any]:
        """Return what the module logged in this ``training_step``, without computing any metric."""
        results = getattr(self.trainer.fit_loop.epoch_loop, "_results", None) or {}
        return dict(_scalars(results))


def _scalars(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and latest value of each plain scalar in Lightning's results of a step."""
    for result in results.values():
        meta = getattr(result, "meta", None)
        value = getattr(result, "_forward_cache", None)
        is_scalar = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
        if meta is not None and is_scalar and getattr(result, "is_tensor", True) is not False:
            yield meta.name, value
